"""A run as others may have it, with a card and its results; or an adapter as every server reads it."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from safetensors import safe_open

from layersift.adapt import store
from layersift.adapt.store import ADAPTER_FILE, CONFIG_FILE, canonical
from layersift.config.fields import check_value
from layersift.config.train import FULL
from layersift.errors import AdapterError, LayersiftError, wrap_library_errors
from layersift.files import new_directory, read_json, write_json, write_text
from layersift.records.card import HUB_ID, PICTURE, base_id, data_id, data_without_place, run_card, without_paths
from layersift.records.reading import upload
from layersift.records.runs import HELD_BACK_FILE, READ_FILE, SELECTION_FILE, RunRecord
from layersift.records.selection import Selection
from layersift.report.comparison import write_importance

# What of an evaluation's file is read, and of which type it is.
EVALUATED: dict[str, Any] = {"run": str, "metrics": dict[str, float | None], "samples": int, "data": dict[str, Any]}
RESULTS = ".eval_results/layersift.yaml"


def push_to_hub(
    run: str | Path,
    repo: str,
    *,
    base_model: str | None = None,
    evaluations: Sequence[str | Path] = (),
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put a finished run on the Hub, with a card.

    Args:
        run: a run directory, as :func:`train` writes it.
        repo: ``user/name``; made where there is none.
        base_model: the base's Hub id, where the run names a directory.
        evaluations: files that ``layersift evaluate -o`` wrote of this run.
        private: whether a new repository is private.
        token: of the Hub; None: that of ``hf auth login``.

    Returns:
        The repository's address.

    Raises:
        LayersiftError: not a finished run, its base has no Hub id, an evaluation is of another run, or the Hub refuses.

    Examples:
        >>> from layersift import LayersiftError, push_to_hub
        >>> try:
        ...     push_to_hub("run", "user/name")
        ... except LayersiftError as error:
        ...     print(error)
        run: its base model is 'model', which others do not have; --base-model names it on the Hub
    """
    with TemporaryDirectory() as place:
        stage(Path(run), Path(place), repo, base_model, [Path(file) for file in evaluations])
        return upload(Path(place), repo, private=private, token=token)


def stage(run: Path, place: Path, repo: str, base_model: str | None, evaluations: Sequence[Path]) -> None:
    """Write into a directory what is to be uploaded.

    Raises:
        LayersiftError: see :func:`push_to_hub`.
    """
    record, selection = RunRecord.load(run), Selection.load(run / SELECTION_FILE)
    base = base_model or base_id(record.source.name, record.model_revision)
    if base is None:
        raise LayersiftError(
            f"{run}: its base model is {record.source.name!r}, which others do not have; --base-model names it on the "
            "Hub"
        )
    if not HUB_ID.fullmatch(base):
        raise LayersiftError(f"--base-model {base!r}: an id of the Hub, such as user/name, is needed, and no path")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise LayersiftError(f"{repo!r} is no repository of the Hub; user/name is needed")
    results = [_evaluation(file, run, record) for file in evaluations]
    kept = shutil.ignore_patterns("merged", "logs", f"{HELD_BACK_FILE}.*", READ_FILE)
    shutil.copytree(run, place, dirs_exist_ok=True, ignore=kept)
    task = None
    if record.settings.method != FULL:
        config = read_json(place / store.CONFIG_FILE, "the adapter_config.json of a PEFT adapter")
        task = str(config["task_type"])
        write_json(place / store.CONFIG_FILE, config | {"base_model_name_or_path": base})
    digest = store.digest(record.settings.method, place)
    record = replace(
        record,
        source=replace(record.source, name=base),
        data=data_without_place(record.data),
        command=without_paths(record.command),
        trained_digest=digest,
    )
    record.save(place)
    shared = selection.without_places(base)
    shared.save(place / SELECTION_FILE)
    if selection.metric:
        write_importance(shared, place / PICTURE)
    write_text(place / "README.md", run_card(record, shared, task, base, repo, results, bool(selection.metric)))
    if entries := [entry for result in results for entry in _entries(result)]:
        write_text(place / RESULTS, yaml.safe_dump(entries, sort_keys=False))


def _evaluation(file: Path, run: Path, record: RunRecord) -> dict[str, Any]:
    """What `evaluate` wrote, of this run.

    Raises:
        LayersiftError: something else, or of another run.
    """
    evaluation = read_json(file, "what `layersift evaluate -o` writes")
    for key, hint in EVALUATED.items():
        if key not in evaluation:
            raise LayersiftError(f"{file}: not what `layersift evaluate -o` writes (no {key})")
        check_value(f"{file}: {key}", evaluation[key], hint)
        if key == "metrics" and evaluation.get("trained_digest") != record.trained_digest:
            raise LayersiftError(f"{file}: of {evaluation['run']}, whose adapters are others than those of {run}")
    check_value(f"{file}: data.source", evaluation["data"].get("source"), str)
    if wrong := next((n for n, v in evaluation["metrics"].items() if v is not None and not math.isfinite(v)), None):
        raise LayersiftError(f"{file}: metrics.{wrong} is not finite; nothing can be said of it")
    return evaluation


def _entries(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The Hub's entries of an evaluation, which it takes of data sets that it has."""
    source = data_id(evaluation["data"]["source"])
    if source is None:
        return []
    about = f"{evaluation['samples']} samples, layersift evaluate"
    scored = {name: value for name, value in evaluation["metrics"].items() if value is not None}
    return [
        {"dataset": {"id": source, "task_id": name}, "value": value, "notes": about} for name, value in scored.items()
    ]


_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(lora_A|lora_B)\.weight")
WITHOUT_LAYERS = dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
TEXT_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
)


def for_serving(adapter: Path, output: Path) -> tuple[str, ...]:
    """Copy a LoRA adapter to ``output``, its config naming the modules that its weights are of, in full and sorted.

    SGLang refuses a regex there, mlx and llama.cpp read the weights' names.

    Returns:
        The modules.

    Raises:
        AdapterError: no LoRA adapter of PEFT, or one with what servers refuse: DoRA, a head, stacked experts.
    """
    with new_directory(output, "export") as place:
        config = read_json(adapter / CONFIG_FILE, "the adapter_config.json of a PEFT adapter")
        modules = served_modules(adapter, config)
        config |= {"target_modules": list(modules)} | {k: v for k, v in WITHOUT_LAYERS.items() if k in config}
        shutil.copy(adapter / ADAPTER_FILE, place / ADAPTER_FILE)
        for pattern in TEXT_FILES:
            for file in adapter.glob(pattern):
                shutil.copy(file, place / file.name)
        write_json(place / CONFIG_FILE, canonical(config))
    return modules


def served_modules(adapter: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The modules that an adapter's weights are of.

    Raises:
        AdapterError: see :func:`for_serving`.
    """
    merge = "merge it into its model instead (layersift train --merge)"
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{adapter}: an adapter of type {config.get('peft_type')}; servers read LORA; {merge}")
    if config.get("use_dora"):
        raise AdapterError(f"{adapter}: DoRA, which vLLM and others refuse; {merge}")
    if saved := config.get("modules_to_save"):
        raise AdapterError(f"{adapter}: it holds whole modules ({', '.join(saved)}), which vLLM refuses; {merge}")
    with (
        wrap_library_errors(AdapterError, f"{adapter / ADAPTER_FILE}: cannot be read", "copy the whole run again"),
        safe_open(adapter / ADAPTER_FILE, "pt") as f,
    ):
        names = list(f.keys())
    modules = {match["module"] for match in map(_KEY.fullmatch, names) if match}
    others = [name for name in names if not _KEY.fullmatch(name)]
    if others or config.get("target_parameters"):
        what = others[0] if others else str(config["target_parameters"])
        raise AdapterError(f"{adapter}: {what} is no pair of LoRA matrices of a module; {merge}")
    return tuple(sorted(modules))
