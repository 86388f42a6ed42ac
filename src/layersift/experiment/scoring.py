"""What is compared, before anything is trained: every criterion's scores, from one pass over one sample."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from layersift.config.fields import json_values, read_as
from layersift.config.inputs import TaskKind
from layersift.config.recipe import Recipe
from layersift.config.select import rule_digest
from layersift.errors import LayersiftError, SelectionError
from layersift.experiment.prepare import Prepared
from layersift.files import read_json, write_json
from layersift.measures import MEASURES
from layersift.models.stacks import BlockStack, find_stack
from layersift.progress import Reporter
from layersift.records.data import DataRecord
from layersift.records.scores import LayerScores, mask_of
from layersift.represent.positions import POSITIONS
from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion, announce_criteria, score_layers
from layersift.score.registry import find_criterion
from layersift.score.stability import Stability, measure_convergence, measure_stability
from layersift.select.sample import sample_table, scoring_contexts


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
class Scoring:
    """Every criterion's scores on one model and sample, and how they come together."""

    stack: BlockStack
    kind: TaskKind
    scored: tuple[Scored, ...]
    positions: dict[str, tuple[int, ...]]  # the selection by the first criterion that reads tokens, at each position
    matrix: tuple[tuple[float | None, ...], ...]  # CKA of every R_i with every R_j
    left_out: dict[str, str]  # criteria that have no scores here, and why
    data: DataRecord
    samples: int = 0


def sizes_of(recipe: Recipe, num_layers: int) -> list[int]:
    """The numbers of layers to compare at; half of them where the recipe names none.

    Raises:
        SelectionError: more layers than there are.
    """
    sizes = recipe.compare.sizes or [max(1, num_layers // 2)]
    if max(sizes) >= num_layers:
        raise SelectionError(f"compare.sizes {sizes}: there are {num_layers} layers; fewer can be chosen among them")
    return sizes


def scoring_of(recipe: Recipe, prepared: Prepared, sizes: Sequence[int], output: Path, reporter: Reporter) -> Scoring:
    """:func:`score_all`, or what an earlier start of the same comparison found."""
    path = output / "scores.json"
    settings = recipe.compare
    key = {
        "criteria": settings.criteria,
        "rules": {name: digest for name in settings.criteria if (digest := rule_digest(name)) is not None},
        "seed": recipe.seed,
        "sizes": list(sizes),
        "probe_share": settings.probe_share,
        "select": json.loads(json.dumps(asdict(recipe.select))),
    }
    if path.exists() and (kept := read_json(path, "the scores of a comparison")).get("of") == key:
        return read_as(Scoring, kept["scoring"], str(path))
    scoring = score_all(recipe, prepared, sizes, reporter)
    write_json(path, {"of": key, "scoring": json_values(scoring)})
    return scoring


def score_all(recipe: Recipe, prepared: Prepared, sizes: Sequence[int], reporter: Reporter) -> Scoring:
    """Every criterion's scores for every size, from one forward and one backward pass over one sample.

    Raises:
        LayersiftError: the data or the model cannot be used.
    """
    encoder = prepared.encoder
    loaded = prepared.task.load(recipe.seed)
    stack = find_stack(loaded.model, recipe.select.tower)
    if stack.joined:
        raise SelectionError("compare knows one stack of blocks; name one tower")
    steps = recipe.train.steps(len(prepared.train.examples))
    settings = replace(
        recipe.select,
        compat=None,  # the criteria choose, not the published scripts
        probe_steps=max(1, round(recipe.compare.probe_share * steps)),
    )
    sample = sample_table(prepared.tables.train, encoder, settings)
    adapter = prepared.task.adapter(recipe.train)
    with reporter.stage("reading the sample", len(sample.examples)) as progress:
        (context,) = scoring_contexts(loaded, stack, sample, settings, adapter=adapter, progress=progress)
        criteria = [find_criterion(name) for name in recipe.compare.criteria]
        announce_criteria([*criteria, *_at_all_positions(context)], context)
        scored, left_out = _score(criteria, context, sizes, reporter)
    first = next((c for c in criteria if c.at is not None and c.name.partition("@")[0] in ("cka", "cka-robust")), None)
    by_position = _at_all_positions(context, first or find_criterion("cka"))
    chosen = {c.position or "": score_layers(c, context).top(sizes[0]) for c in by_position}
    return Scoring(
        stack, encoder.kind, tuple(scored), chosen, _matrix(context), left_out, sample.data, len(sample.examples)
    )


def _at_all_positions(context: ScoringContext, criterion: Criterion | None = None) -> list[Criterion]:
    """The criterion at every position that the sample's task has."""
    at = (criterion or find_criterion("cka")).at
    responses = all(e.response is not None for e in context.examples)
    names = [name for name in POSITIONS if responses or name != "response-mean"]
    return [at(name) for name in names] if at is not None else []


def _score(
    criteria: list[Criterion], context: ScoringContext, sizes: Sequence[int], reporter: Reporter
) -> tuple[list[Scored], dict[str, str]]:
    """Scores, and why those criteria are left out that have none here.

    Raises:
        SelectionError: not one criterion has.
    """
    scorings: list[Scored] = []
    left_out: dict[str, str] = {}
    for criterion in criteria:
        scored, why = _score_one(criterion, context, sizes, reporter)
        scorings += scored
        if why is not None:
            left_out[criterion.name] = why
            reporter.say(f"left out: {criterion.name}: {why}")
    if not scorings:
        raise SelectionError(f"not one criterion has scores here; the first: {next(iter(left_out.values()))}")
    return scorings, left_out


def _score_one(
    criterion: Criterion, context: ScoringContext, sizes: Sequence[int], reporter: Reporter
) -> tuple[list[Scored], str | None]:
    """A criterion's scores for every size; or none, and why."""
    scorings: list[Scored] = []
    try:
        for size in sizes:
            started = time.perf_counter()
            if scorings and criterion.needs != "training":
                scores = scorings[0].scores
            else:
                scores = score_layers(criterion, replace(context, count=size))
            if not scores.ranking:
                return [], f"no layer has a score ({next(iter(scores.undefined.values()))})"
            sure, converged = measure_stability(criterion, context, size), measure_convergence(criterion, context, size)
            scorings.append(Scored(scores, sure, size, converged))
            mask = mask_of(scorings[-1].layers, context.num_layers)
            reporter.say(f"{criterion.name}: {mask} ({time.perf_counter() - started:.1f} s)")
    except LayersiftError as error:
        return [], str(error)
    return scorings, None


def _matrix(context: ScoringContext) -> tuple[tuple[float | None, ...], ...]:
    """Debiased CKA of every R_i with every R_j at the default position; None where one is constant."""
    measure = MEASURES["cka"]
    forms = context.prepared(measure).forms
    return tuple(
        tuple(None if a is None or b is None else round(measure.compare(a, b), 6) for b in forms) for a in forms
    )


def rank_correlation(a: LayerScores, b: LayerScores) -> float | None:
    """Spearman's, over the layers that both score, each in its direction; None where one of them is constant there."""
    pairs = [
        (x * a.sign, y * b.sign)
        for x, y in zip(a.importance, b.importance, strict=True)
        if x is not None and y is not None
    ]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    from scipy import stats  # takes a second to import

    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Share of the layers that two selections of equal size have in common."""
    return len(set(a) & set(b)) / max(len(a), 1)


def between_criteria(scoring: Scoring, size: int) -> list[dict[str, object]]:
    """Every pair of criteria with their rank correlation and their overlap."""
    scored = [s for s in scoring.scored if s.size == size]
    return [_pair(a, b) for a in scored for b in scored]


def _pair(a: Scored, b: Scored) -> dict[str, object]:
    return {
        "a": a.scores.criterion,
        "b": b.scores.criterion,
        "correlation": rank_correlation(a.scores, b.scores),
        "overlap": overlap(a.layers, b.layers),
    }


def between_positions(positions: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """A table of how much the selections at different token positions have in common."""
    rows = [["position", *positions]]
    for name, layers in positions.items():
        rows.append([name, *(f"{overlap(layers, other):.0%}" for other in positions.values())])
    return rows
