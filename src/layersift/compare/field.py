"""What is compared, before anything is trained: every criterion's scores, from one pass over one sample."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from layersift.compare.cells import mask_of, split_tables
from layersift.compare.pipeline import prepare_tables
from layersift.compare.recipe import Recipe
from layersift.errors import LayersiftError, SelectionError
from layersift.files import read_json, write_json
from layersift.load.blocks import BlockStack, choose_stack, find_stacks
from layersift.load.data import TaskKind
from layersift.load.models import load_model
from layersift.measures import MEASURES
from layersift.progress import Reporter
from layersift.represent.positions import POSITIONS
from layersift.score.base import Criterion, LayerScores
from layersift.score.similarity import prepare
from layersift.score.stability import Stability, convergence, stability
from layersift.score.subject import Subject, score_layers
from layersift.score.table import find_criterion, rule_file
from layersift.select.choose import subject_of
from layersift.select.sample import sample_table


@dataclass(frozen=True)
class Scored:
    """A criterion's scores, for a number of layers, and how sure they are."""

    scores: LayerScores
    stability: Stability | None
    size: int
    converged: tuple[tuple[int, float], ...] = ()  # by sample size: share of the layers that so many samples find

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers chosen."""
        return self.scores.top(self.size)


@dataclass(frozen=True)
class Field:
    """What is compared, before anything is trained."""

    stack: BlockStack
    kind: TaskKind
    scored: tuple[Scored, ...]
    positions: dict[str, tuple[int, ...]]
    matrix: tuple[tuple[float | None, ...], ...]
    left_out: dict[str, str]  # criteria that have no scores here, and why
    data: dict[str, Any]


def sizes_of(recipe: Recipe, num_layers: int) -> list[int]:
    """The numbers of layers to compare at; half of them where the recipe names none.

    Raises:
        SelectionError: more layers than there are.
    """
    sizes = recipe.compare.sizes or [max(1, num_layers // 2)]
    if max(sizes) >= num_layers:
        raise SelectionError(f"compare.sizes {sizes}: there are {num_layers} layers; fewer can be chosen among them")
    return sizes


def scores_of(recipe: Recipe, sizes: Sequence[int], output: Path, reporter: Reporter) -> Field:
    """:func:`score_all`, or what an earlier start of the same comparison found."""
    path = output / "scores.json"
    settings = recipe.compare
    key = {
        "criteria": settings.criteria,
        "rules": {name: _digest(file) for name in settings.criteria if (file := rule_file(name)) is not None},
        "seed": recipe.seed,
        "sizes": list(sizes),
        "probe_share": settings.probe_share,
        "select": json.loads(json.dumps(asdict(recipe.select))),
    }
    if path.exists() and (kept := read_json(path, "the scores of a comparison"))["of"] == key:
        return _field_of(kept["field"])
    field = score_all(recipe, sizes, reporter)
    write_json(path, {"of": key, "field": asdict(field)})
    return field


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _field_of(values: dict[str, Any]) -> Field:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    stack = BlockStack(**{name: tuples(v) for name, v in values["stack"].items()})
    scored = []
    for entry in values["scored"]:
        kept = {name: tuples(v) for name, v in entry["scores"].items()}
        kept["undefined"] = {int(layer): why for layer, why in kept["undefined"].items()}
        sure = entry["stability"]
        sure = None if sure is None else Stability(**{name: tuples(v) for name, v in sure.items()})
        scored.append(Scored(LayerScores(**kept), sure, entry["size"], tuples(entry["converged"])))
    positions = {name: tuples(v) for name, v in values["positions"].items()}
    return Field(
        **values | {"stack": stack, "scored": tuple(scored), "positions": positions, "matrix": tuples(values["matrix"])}
    )


def score_all(recipe: Recipe, sizes: Sequence[int], reporter: Reporter) -> Field:
    """Every criterion's scores for every size, from one forward and one backward pass over one sample.

    Raises:
        LayersiftError: the data or the model cannot be used.
    """
    tables, _ = split_tables(recipe)
    prepared = prepare_tables(recipe, tables, reporter)
    encoder = prepared.encoder
    loaded = load_model(
        recipe.model, encoder.kind, max(1, len(encoder.classes)), recipe.seed, encoder.processor is not None
    )
    stack = choose_stack(find_stacks(loaded.model), recipe.select.tower)
    if stack.joined:
        raise SelectionError("compare knows one stack of blocks; name one tower")
    select = replace(recipe.select, compat=None)  # the criteria choose, not the published scripts
    sample = sample_table(tables.train, encoder, select)
    steps = recipe.train.steps(len(prepared.train.examples))
    with reporter.stage("reading the sample", len(sample.examples)) as progress:
        subject = subject_of(
            loaded.model,
            stack,
            sample,
            replace(select, probe_steps=max(1, round(recipe.compare.probe_share * steps))),
            loaded.pad_id,
            progress=progress,
            adapter=recipe.train.adapter(encoder.kind, 1, encoder.seq2seq),
        )
        criteria = [find_criterion(name) for name in recipe.compare.criteria]
        subject.plan([*criteria, *_at_all_positions(subject)])
        scored, left_out = _score(criteria, subject, sizes, reporter)
    first = next((c for c in criteria if c.at is not None and c.name.partition("@")[0] in ("cka", "cka-robust")), None)
    by_position = _at_all_positions(subject, first or find_criterion("cka"))
    chosen = {c.position or "": score_layers(c, subject).top(sizes[0]) for c in by_position}
    data: dict[str, Any] = {
        "source": tables.train.source,
        "rows": len(tables.train.rows),
        "fingerprint": tables.train.fingerprint,
    }
    data["sample"] = len(sample.examples)
    return Field(stack, encoder.kind, tuple(scored), chosen, _matrix(subject), left_out, data)


def _at_all_positions(subject: Subject, criterion: Criterion | None = None) -> list[Criterion]:
    """The criterion at every position that the sample's task has."""
    at = (criterion or find_criterion("cka")).at
    responses = all(e.response is not None for e in subject.examples)
    names = [name for name in POSITIONS if responses or name != "response-mean"]
    return [at(name) for name in names] if at is not None else []


def _score(
    criteria: list[Criterion], subject: Subject, sizes: Sequence[int], reporter: Reporter
) -> tuple[list[Scored], dict[str, str]]:
    """Scores, and why those criteria are left out that have none here.

    Raises:
        SelectionError: not one criterion has.
    """
    found: list[Scored] = []
    left_out: dict[str, str] = {}
    for criterion in criteria:
        scored = _score_or_why_not(criterion, subject, sizes, reporter)
        if isinstance(scored, str):
            left_out[criterion.name] = scored
            reporter.say(f"left out: {criterion.name}: {scored}")
        else:
            found += scored
    if not found:
        raise SelectionError(f"not one criterion has scores here; the first: {next(iter(left_out.values()))}")
    return found, left_out


def _score_or_why_not(
    criterion: Criterion, subject: Subject, sizes: Sequence[int], reporter: Reporter
) -> list[Scored] | str:
    try:
        return _score_one(criterion, subject, sizes, reporter)
    except LayersiftError as error:
        return str(error)


def _score_one(criterion: Criterion, subject: Subject, sizes: Sequence[int], reporter: Reporter) -> list[Scored]:
    found: list[Scored] = []
    for size in sizes:
        started = time.perf_counter()
        if found and criterion.needs != "training":
            scores = found[0].scores
        else:
            scores = score_layers(criterion, replace(subject, count=size))
        if not scores.ranking:
            raise SelectionError(f"no layer has a score ({next(iter(scores.undefined.values()))})")
        sure, converged = stability(criterion, subject, size), convergence(criterion, subject, size)
        found.append(Scored(scores, sure, size, converged))
        mask = mask_of(found[-1].layers, subject.num_layers)
        reporter.say(f"{criterion.name}: {mask} ({time.perf_counter() - started:.1f} s)")
    return found


def _matrix(subject: Subject) -> tuple[tuple[float | None, ...], ...]:
    """Debiased CKA of every R_i with every R_j at the default position; None where one is constant."""
    prepared, measure = prepare(subject.representations(), MEASURES["cka"]).forms, MEASURES["cka"]
    return tuple(
        tuple(None if a is None or b is None else round(measure.compare(a, b), 6) for b in prepared) for a in prepared
    )
