"""The README.md of adapters and of selections; and a selection for people, a row a layer."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from layersift.config.quantities import GIVEN, towers_of
from layersift.models.source import OF_FILES
from layersift.records.reading import DataRecord
from layersift.records.runs import HeldBack, Pruned, RunRecord


class Shown(Protocol):
    """What is told of a :class:`layersift.records.selection.Selection`, where its fields are described."""

    @property
    def model(self) -> str: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def selected_layers(self) -> Sequence[int]: ...
    @property
    def mask(self) -> str: ...
    @property
    def importance(self) -> Sequence[float | None]: ...
    @property
    def interval(self) -> Sequence[tuple[float, float] | None] | None: ...
    @property
    def membership(self) -> Sequence[float] | None: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def top_dimension_share(self) -> Sequence[float | None]: ...
    @property
    def undefined(self) -> Mapping[int, str]: ...
    @property
    def modules(self) -> Mapping[int, Mapping[str, int]] | None: ...
    @property
    def rule(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def position(self) -> str: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def data(self) -> DataRecord: ...
    @property
    def versions(self) -> Mapping[str, str]: ...
    @property
    def command(self) -> str: ...


def rows_of(selection: Shown) -> list[list[str]]:
    """A header, and a row a layer: its importance, how sure it is, the largest dimension's share, what is selected."""
    read = any(share is not None for share in selection.top_dimension_share)
    header = ["layer", "importance"]
    if selection.confidence is not None:
        header += [f"{selection.confidence:.0%} interval", "in the top"]
    if read:
        header.append("largest dimension")
    rows = [[*header, "", ""]]
    largest = max((abs(v) for v in selection.importance if v is not None), default=1.0)
    for layer, value in enumerate(selection.importance):
        row = [str(layer), "undefined" if value is None else _figure(value, largest)]
        if selection.confidence is not None:
            between = selection.interval[layer] if selection.interval is not None else None
            row.append("-" if between is None else " to ".join(_figure(edge, largest) for edge in between))
            row.append("-" if selection.membership is None else f"{selection.membership[layer]:.0%}")
        if read:
            share = selection.top_dimension_share[layer]
            row.append("-" if share is None else f"{share:.0%}")
        chosen = "selected" if layer in selection.selected_layers else ""
        if selection.modules is not None and layer in selection.modules:
            chosen = ", ".join(f"{name} {rank}" for name, rank in selection.modules[layer].items())
        rows.append([*row, chosen, selection.undefined.get(layer, "")])
    return rows


def html_of(selection: Shown) -> str:
    """What the selection says of itself, and a table of its rows."""
    header, *body = [[html.escape(cell) for cell in row] for row in rows_of(selection)]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f"<p>{html.escape(str(selection))}</p><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _figure(value: float, largest: float) -> str:
    """Four decimals, or four digits where all values are small."""
    return f"{value:.4f}" if largest >= 0.01 else f"{value:.3e}"


ADAPTED, FROZEN = "■", "□"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*|\w[\w-]*")
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".txt")
PICTURE = "importance.png"
PEFT_CODE = """\
import transformers
from peft import PeftModel

base = transformers.{auto}.from_pretrained({base!r}{settings})
model = PeftModel.from_pretrained(base, {repo!r})
"""
FULL_CODE = """\
import layersift

record, loaded, encoder = layersift.load_run({repo!r})  # a local copy of this directory; loaded.model
"""


def base_id(name: str, revision: str) -> str | None:
    """A model's id on the Hub; None where it was read from somebody's disk."""
    return None if revision.startswith(OF_FILES) or not HUB_ID.fullmatch(name) else name


def data_id(source: str) -> str | None:
    """A data set's id on the Hub; None for what can be a file or a directory here."""
    return None if Path(source).exists() or source.endswith(FILES) or not HUB_ID.fullmatch(source) else source


def data_without_place(data: DataRecord) -> DataRecord:
    """The record of some data without the directory that they lie in."""
    return data if data_id(data.source) else replace(data, source=Path(data.source).name)


def without_paths(text: str) -> str:
    """A command line whose absolute paths have lost their directories, which are nobody else's business."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in shlex.split(text)]
    return shlex.join(words)


def run_card(
    record: RunRecord,
    selection: Shown,
    task: str | None,
    base: str | None,
    repo: str = ".",
    evaluations: Sequence[Mapping[str, Any]] = (),
    picture: bool = False,
) -> str:
    """The card of a run's directory, as Markdown with the Hub's metadata in front.

    Args:
        task: PEFT's task type; None where the blocks themselves were trained.
        base: the base model's id on the Hub, where it has one.
        repo: what the loading code names.
        evaluations: what ``layersift evaluate`` wrote, of each set of data.
        picture: whether the picture of importances lies beside it.
    """
    model, settings = Path(record.source.name).name, record.settings
    given = selection.rule.removeprefix(GIVEN) if selection.rule.startswith(GIVEN) else None
    lists = given if towers_of(given) else None  # of several stacks, each by its own
    layers = lists or ", ".join(map(str, selection.selected_layers))
    count = f"{len(selection.selected_layers)} of {selection.num_layers}"
    what = (
        "The blocks themselves were trained"
        if task is None
        else f"Adapters (`{settings.method}`, rank {settings.rank})"
    )
    parts = [
        _front(base, _pipeline(record), settings.method, peft=task is not None),
        f"# {model}: {count} layers, for {Path(record.data.source).name or 'a task'}",
        f"{what} on layers {layers} of the {selection.num_layers} of `{model}`, counted from 0 "
        f"{'in each stack' if lists else 'as PEFT does'}; the others are as they were.",
        _layers(selection, picture),
        _data(record.data),
        _training(record),
        pruned_section(record.pruned) if record.pruned else "",
        _results(record.held_back, evaluations),
        _code(record, task, repo),
        _made(record.versions, record.command),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def selection_card(selection: Shown, base: str, repo: str) -> str:
    """The card of a selection by itself."""
    code = f"import layersift\n\nselection = layersift.Selection.from_pretrained({repo!r})\n"
    code += "model = selection.attach(model, LoraConfig(r=8))  # your model, a PEFT config\n"
    parts = [
        _front(base, None, None, peft=False),
        f"# {Path(selection.model).name}: which layers carry the adapters",
        _layers(selection, False),
        _data(selection.data),
        f"## Use it\n\n```python\n{code}```",
        _made(selection.versions, selection.command),
    ]
    return "\n\n".join(parts) + "\n"


def _front(base: str | None, pipeline: str | None, method: str | None, peft: bool) -> str:
    from huggingface_hub import ModelCardData  # half a second to import

    tags = ["layersift", *([method] if method else [])]
    tags += [f"base_model:adapter:{base}"] if peft and base is not None else []
    library = "peft" if peft else "layersift"
    data = ModelCardData(base_model=base, library_name=library, pipeline_tag=pipeline or None, tags=tags)
    return f"---\n{data.to_yaml()}\n---"


def _pipeline(record: RunRecord) -> str:
    kind, image = record.encoder.kind, record.columns.image is not None
    if kind in ("classification", "regression"):
        return "image-classification" if image else "text-classification"
    return "image-text-to-text" if image else "text-generation"


def _layers(selection: Shown, picture: bool) -> str:
    cells = "".join(ADAPTED if digit == "1" else FROZEN for digit in selection.mask)
    said = f"`{cells}` ({ADAPTED} adapted, {FROZEN} frozen; {selection.rule}"
    if selection.metric:
        said += f"; {selection.metric} at {selection.position or 'no position'}, {selection.num_samples} samples"
    lines = ["## Layers", f"{said})"]
    if picture:
        lines.append(f"![Importance of each layer]({PICTURE})")
    if selection.metric:
        header, *body = rows_of(selection)
        rows = [[cell or " " for cell in row] for row in [header, ["---"] * len(header), *body]]
        lines.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(lines)


def _data(data: DataRecord) -> str:
    if not data.rows:
        return ""
    columns = ", ".join(f"{role.replace('_', ' ')} = {name}" for role, name in data.columns.items())
    lines = [f"## Data\n\n{Path(data.source).name}: {data.rows:,} rows, {data.kind or 'ready batches'}"]
    lines[0] += f" ({columns})" if columns else ""
    if data.classes:
        lines.append("Classes: " + ", ".join(f"{name} ({count:,})" for name, count in data.classes.items()) + ".")
    if data.left_out:
        lines.append(f"Left out: {data.left_out}.")
    lines.append(f"Fingerprint `{data.fingerprint}`.")
    return "\n\n".join(lines)


def _training(record: RunRecord) -> str:
    settings = record.settings
    rows = [
        ("samples, epochs, steps", f"{record.samples:,}, {settings.num_epochs:g}, {record.steps:,}"),
        ("batch", f"{settings.batch_size} x {settings.gradient_accumulation}"),
        ("learning rate, schedule", f"{settings.rate:g}, {settings.scheduler}"),
        ("rank, alpha, dropout", f"{settings.rank}, {settings.alpha:g}, {settings.dropout:g}"),
        ("strategy, seed", f"{record.strategy_followed or settings.strategy}, {record.seed}"),
        ("trained parameters", f"{record.trainable_parameters:,}"),
        *_reading(record),
        ("mean loss", f"{record.train_loss:.4f}"),
        ("time, device", f"{record.train_seconds:.1f} s, {record.device}"),
    ]
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Training\n\n| | |\n| --- | --- |\n{body}"


def pruned_section(pruned: Pruned) -> str:
    """What was cut away after training."""
    ranks = f"{min(pruned.ranks.values())} to {max(pruned.ranks.values())}"
    lines = [
        f"`layersift prune` kept the largest singular values of all modules within {pruned.budget}: "
        f"{pruned.parameters:,} of {pruned.of_parameters:,} LoRA parameters, ranks {ranks}. The updates that are left "
        f"differ from the trained ones by {pruned.relative_error:.4f} of their Frobenius norm."
    ]
    if pruned.dropped:
        lines.append(f"Dropped modules: {', '.join(f'`{name}`' for name in pruned.dropped)}.")
    body = "\n\n".join(lines)
    return f"## Pruned\n\n{body}"


def _reading(record: RunRecord) -> list[tuple[str, str]]:
    """What changed what the model reads, or ends what it writes; all of it is saved beside the adapters."""
    rows = []
    if record.encoder.chat_template is not None:
        rows.append(("chat template", "another than the base's, by --chat-template; saved with this tokenizer"))
    if record.answers_end_at:
        ends = ", ".join(f"`{text}`" for text in record.answers_end_at)
        rows.append(("answers end at", f"{ends} (generation_config.json, greedy)"))
    return rows


def _results(held_back: HeldBack | None, evaluations: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    if held_back is not None:
        lines.append(f"- {len(held_back.rows):,} rows held back of these data: {_metrics(held_back.metrics)}")
        if held_back.majority is not None and held_back.majority_accuracy is not None:
            lines[-1] += f"; always {held_back.majority!r}: accuracy {held_back.majority_accuracy:.4f}"
        if held_back.chose_the_stop:
            lines[-1] += "; they also decided when to stop"
    for evaluation in evaluations:
        metrics = _metrics(evaluation["metrics"])
        lines.append(f"- {Path(evaluation['data']['source']).name}, {evaluation['samples']:,} samples: {metrics}")
        if always := evaluation.get("majority"):
            lines[-1] += f"; always {always['name']!r}: accuracy {always['accuracy']['']:.4f}"
    none = "None are recorded here; `layersift evaluate` judges a run on held-back data."
    return "## Results\n\n" + ("\n".join(lines) or none)


def _metrics(metrics: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {'undefined' if value is None else f'{value:.4f}'}"
        for name, value in metrics.items()
    )


def _code(record: RunRecord, task: str | None, repo: str) -> str:
    if task is None:
        return f"## Use it\n\n```python\n{FULL_CODE.format(repo=repo)}```"
    image, kind = record.columns.image is not None, record.encoder.kind
    auto = "AutoModelForSeq2SeqLM" if task == "SEQ_2_SEQ_LM" else "AutoModelForCausalLM"
    settings = ""
    if kind in ("classification", "regression"):
        auto = "AutoModelForImageClassification" if image else "AutoModelForSequenceClassification"
        settings = f", num_labels={max(1, len(record.encoder.classes))}, ignore_mismatched_sizes=True"
        if kind == "classification":
            settings += f", id2label={dict(enumerate(record.encoder.classes))!r}"
    elif image:
        auto = "AutoModelForImageTextToText"
    code = PEFT_CODE.format(auto=auto, base=record.source.name, settings=settings, repo=repo)
    reader = "AutoImageProcessor" if image and settings else "AutoProcessor" if image else "AutoTokenizer"
    code += f"reader = transformers.{reader}.from_pretrained({repo!r})\n"
    return f"## Use it\n\n```python\n{code}```\n\nOr `layersift predict RUN --data FILE`, on a copy of this directory."


def _made(versions: Mapping[str, str], command: str) -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"## Made by\n\n```sh\n{without_paths(command)}\n```\n\n{used}"
