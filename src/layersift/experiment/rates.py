"""Learning rates found without test rows: of each row of a comparison, and by a few short trainings on the user's rows.

Short trainings like higher rates than long ones, so that they cannot say that the rule's rate is too low: it is never
raised. It is lowered where a lower one is significantly better, where it collapsed, or where its upper neighbour did
and a lower one is as good: a rate next to a collapse may collapse with another seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from layersift.adapt.methods import with_ranks
from layersift.config.defaults import Trained, default_rate, fill_epochs, hidden_size
from layersift.config.fields import json_values, read_as
from layersift.config.recipe import Recipe, TaskKind
from layersift.config.train import AUTO, TrainSettings, parse_strategy
from layersift.data.split import split_off
from layersift.data.table import Table
from layersift.errors import LayersiftError, TrainingError
from layersift.evaluation.metrics import TOKEN_BUDGET, Evaluation, evaluate, one_run
from layersift.experiment.cell import Job, Jobs
from layersift.experiment.costs import mean_size
from layersift.experiment.grid import run_cells
from layersift.experiment.prepare import read_tables, task_of
from layersift.files import read_json, write_json
from layersift.models.load import empty_model, load_config
from layersift.plan.planner import Planner
from layersift.plan.training import Length, StepSize
from layersift.progress import Reporter
from layersift.records.reading import describe
from layersift.records.runs import Cell, RateSearch, Result, TriedRate, Variant
from layersift.records.selection import Selection
from layersift.select.layers import draw_masks
from layersift.statistics.intervals import difference, unit_of
from layersift.task import Task
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput

FURTHER = 3  # rates that are tried beyond either end of those given
TOO_HIGH = 10  # which no training may have
SEARCHES = "rate_searches.json"  # of learning_rate: auto
DIVERGED = "training diverged"  # as a training that did says it


@dataclass(frozen=True)
class Rate:
    """A learning rate, and what it and the others came to on the rows held back."""

    chosen: float
    scores: Mapping[float, float | None]  # of each rate tried; None where the training diverged; none for one alone
    alike: tuple[float, ...] = ()  # that cannot be told from the best one on these rows, it included

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those tried might have been better."""
        return len(self.scores) > 1 and self.chosen in (min(self.scores), max(self.scores))


def choose_rates(
    recipe: Recipe,
    counts: Sequence[int],
    num_layers: int,
    methods: Sequence[str],
    kind: TaskKind,
    jobs: Jobs,
    reporter: Reporter,
    rows: Collection[str] = (),
) -> dict[tuple[str, int], Rate]:
    """The learning rate for each method and number of layers, chosen with random layers; see :func:`tune`.

    Random layers treat all criteria alike, so they are drawn from the masks that no row of the table has.

    Args:
        rows: the masks of the table's rows.
    """
    train, seed = recipe.train, recipe.seed
    masks = tuning_masks(counts, num_layers, seed, rows)
    if len(recipe.compare.learning_rates) > 1:
        for count, mask in masks.items():
            if mask in rows and count < num_layers:
                reporter.say(f"every choice of {count} layers is a row; the learning rate is chosen with {mask}")
    keys = [(method, count) for method in methods for count in counts]
    cells = {
        of_size(method, count): Cell(masks[count], seed, replace(train, method=method), "validation")
        for method, count in keys
    }
    rates = tune(recipe, cells, kind, jobs, reporter)
    return {(method, count): rates[of_size(method, count)] for method, count in keys}


def tuning_masks(counts: Sequence[int], num_layers: int, seed: int, rows: Collection[str] = ()) -> dict[int, str]:
    """The random mask that a learning rate is chosen with, by its number of layers; none of ``rows`` if others remain.

    A rate that suits one row's layers would favour that row.
    """
    return {count: draw_masks(num_layers, count, 1, seed, rows)[0] for count in counts}


def of_size(method: str, count: int) -> str:
    """What a rate for a method and a number of layers is called."""
    return f"{method}, {count} layers"


def tune(recipe: Recipe, cells: Mapping[str, Cell], kind: TaskKind, jobs: Jobs, reporter: Reporter) -> dict[str, Rate]:
    """The learning rate for each of some cells by name, judged on rows held back from training, never on test rows.

    Where the best rate is the lowest or highest one, further ones are tried. A paired test over the rows says which
    rates tie with a cell's best. All cells of a method have one rate where one ties with the best of each: the one of
    the best mean. Otherwise each cell has its own best.

    Raises:
        LayersiftError: a training failed otherwise than by diverging, since another start might choose otherwise; or
            none has a score.
    """
    given = sorted(recipe.compare.learning_rates)
    if len(given) < 2:
        if given:
            return {key: Rate(given[0], {}) for key in cells}
        if recipe.train.learning_rate == AUTO:
            return {key: Rate(one.chosen, {}) for key, one in search_rates(recipe, cells, reporter).items()}
        width = hidden_size(load_config(recipe.model))
        return {key: Rate(rate_of(recipe, cell, kind, width), {}) for key, cell in cells.items()}
    grids: dict[str, list[float]] = {key: list(given) for key in cells}
    for round_ in range(2 * FURTHER + 1):
        wanted = {key: [cells[key].with_settings(learning_rate=rate) for rate in grids[key]] for key in cells}
        results = _trained(recipe, [cell for group in wanted.values() for cell in group], jobs, reporter)
        tried = {
            key: {rate: results.get(cell) for rate, cell in zip(grids[key], group, strict=True)}
            for key, group in wanted.items()
        }
        best = {key: _best(of, key) for key, of in tried.items()}
        further = {key: _beyond(grids[key], best[key], given) for key in cells}
        if round_ == 2 * FURTHER or not any(further.values()):
            break
        grids = {key: sorted([*grids[key], *further[key]]) for key in cells}
    chosen: dict[str, Rate] = {}
    for method in dict.fromkeys(cell.train.method for cell in cells.values()):
        chosen |= _choose({key: of for key, of in tried.items() if cells[key].train.method == method}, best)
    for key, rate in chosen.items():
        alike = f"; no significant difference: {', '.join(f'{r:g}' for r in rate.alike)}" if len(rate.alike) > 1 else ""
        reporter.say(f"learning rate for {key}: {rate.chosen:g}{alike}")
    return chosen


def rate_of(recipe: Recipe, variant: Cell | Variant, kind: TaskKind, width: int) -> float:
    """What is trained at where no rate is tuned: the recipe's rate, or the default of the model's width, its layers
    and rank."""
    trained = Trained(kind, width, len(variant.layers), len(variant.mask))
    return recipe.train.named_rate or default_rate(variant.train, trained)


def search_rates(recipe: Recipe, cells: Mapping[str, Cell], reporter: Reporter) -> dict[str, RateSearch]:
    """What ``learning_rate: auto`` comes to for each of some trainings by name, on the recipe's training rows.

    Rates are kept in the recipe's output, which is open, so that another start does not search again.

    Raises:
        LayersiftError: see :func:`find_rate`; or what an earlier start kept was edited.
    """
    path = Path(recipe.output) / SEARCHES
    known = read_json(path, "searches of rates") if path.exists() else {}
    kept = {key: read_as(RateSearch, one, f"{path}: {key}") for key, one in known.items()}
    task, searches = None, {}
    for name, cell in cells.items():
        key = cell.with_settings(learning_rate=None).file_name(recipe.train)
        if key not in kept:
            task = task or task_of(recipe, read_tables(recipe))
            kept[key] = search_rate(task, cell, reporter, recipe.seed)
            write_json(path, json_values(kept))
        searches[name] = kept[key]
        reporter.say(f"{name}: {searches[name].described()}")
    return searches


def search_rate(task: Task, variant: Cell | Variant, reporter: Reporter, seed: int) -> RateSearch:
    """The learning rate for a variant on a task's rows; see :func:`find_rate`."""
    selection = Selection.of_layers(task.empty, ",".join(map(str, variant.layers)), task.tower)
    return find_rate(task, task.table, replace(selection, model=task.model.name), variant.train, seed, reporter)


def _trained(recipe: Recipe, cells: Sequence[Cell], jobs: Jobs, reporter: Reporter) -> dict[Cell, Result]:
    """Results, those that diverged apart."""
    wanted = [Job(cell) for cell in cells]
    results, failures = run_cells(recipe, wanted, Path(recipe.output), jobs, reporter, "choosing learning rates")
    for cell, why in failures.items():
        if DIVERGED not in why:
            raise LayersiftError(f"no learning rate can be chosen while trainings fail: {cell}: {why}")
    return results


def _best(tried: Mapping[float, Result | None], of: str) -> float:
    known = {rate: _signed(r) for rate, r in tried.items() if r is not None and r.score is not None}
    if not known:
        raise LayersiftError(f"at no learning rate is there a score for {of}; give others")
    return max(known, key=lambda rate: known[rate])


def _signed(result: Result) -> float:
    return unit_of(next(iter(result.metrics))).sign * (result.score or 0.0)


def _beyond(grid: Sequence[float], best: float, given: Sequence[float]) -> list[float]:
    """The next rate beyond the end at which the best one lies, if it does and not too many have been tried there."""
    if best == grid[0] and len([rate for rate in grid if rate < given[0]]) < FURTHER:
        return [float(f"{best * given[0] / given[1]:.3g}")]
    if best == grid[-1] and len([rate for rate in grid if rate > given[-1]]) < FURTHER:
        higher = float(f"{best * given[-1] / given[-2]:.3g}")
        return [higher] if higher < TOO_HIGH else []
    return []


def _choose(tried: Mapping[str, Mapping[float, Result | None]], best: Mapping[str, float]) -> dict[str, Rate]:
    """One rate for all cells where one ties with the best of each, otherwise each cell's own best."""
    scored = {
        key: {rate: r for rate, r in of.items() if r is not None and r.score is not None} for key, of in tried.items()
    }
    ties = {
        key: [rate for rate, r in of.items() if rate == best[key] or _cannot_be_told(of[best[key]], r)]
        for key, of in scored.items()
    }
    shared = sorted(set.intersection(*map(set, ties.values())))

    def total(rate: float) -> float:
        return sum(_signed(of[rate]) for of in scored.values())

    common = max(shared, key=total) if shared else None
    return {
        key: Rate(
            best[key] if common is None else common,
            {rate: None if r is None else r.score for rate, r in of.items()},
            tuple(sorted(ties[key])),
        )
        for key, of in tried.items()
    }


def _cannot_be_told(best: Result, other: Result) -> bool:
    """Whether the paired difference over the rows held back holds zero; of other metrics only equal scores do."""
    apart = difference(one_run(best), one_run(other))
    return best.score == other.score if apart is None or apart.low is None else apart.holds_zero


STEP = 3**0.5  # between two rates
MOST_SPENT = 0.15  # of the training's FLOPs
MOST_TRIED = 4  # rates
JUDGING = 0.25  # of that, for the rows held back
FEWEST_STEPS = 20  # of a short training; less says nothing
HELD_BACK, FEWEST_HELD_BACK, MOST_HELD_BACK = 0.2, 40, 400  # rows: a fraction of all, and how many of them judge
COLLAPSED = 0.15  # of accuracy, or nats, below the best rate tried

Try = Callable[[float], Evaluation | None]  # None where the training diverged


@dataclass(frozen=True)
class Budget:
    """What short trainings may be, and what share of the whole training's FLOPs each takes, its judging included."""

    steps: int
    judged: int  # rows
    share: float


def find_rate(
    task: Task, table: Table, selection: Selection, settings: TrainSettings, seed: int, reporter: Reporter
) -> RateSearch:
    """The learning rate for training some layers on the rows of a table; none of them but these are read.

    Args:
        settings: whose rate is found; the other defaults may be left to their rules.

    Returns:
        The rate with what was tried. Where the training is too short or has too few rows for trials within 15 % of
        its FLOPs, the rule's rate and the reason.

    Raises:
        LayersiftError: the data or the model cannot be used.
    """
    count = min(settings.max_samples or len(table.rows), len(table.rows))
    settings = replace(fill_epochs(settings, table.kind, count), learning_rate=None)
    numbers = len(selection.selected_layers), selection.num_layers
    rule = default_rate(settings, Trained(table.kind, hidden_size(task.config), *numbers))
    if count * HELD_BACK < FEWEST_HELD_BACK:
        needed = math.ceil(FEWEST_HELD_BACK / HELD_BACK)
        return RateSearch(rule, rule, why_not=f"{count} rows are too few to hold some back; {needed} would be enough")
    examples = task.encode(settings.max_samples, seed, table).examples
    rest, held_back = split_off(table, HELD_BACK, seed + 1, by_class=True)
    rows = len(examples), min(MOST_HELD_BACK, len(held_back.rows))
    budget = _budget(task, selection, settings, rows, mean_size(examples, table.kind, settings))
    if isinstance(budget, str):
        return RateSearch(rule, rule, why_not=budget)
    judged = task.encode(budget.judged, seed, held_back).examples
    at_most = None if settings.max_samples is None else min(settings.max_samples, len(rest.rows))
    encoded = task.encode(at_most, seed, rest)
    data = TrainingData(task.encoder, encoded.examples, describe(rest, encoded.notice))
    an_epoch = replace(settings, epochs=1.0).steps(len(data.examples))
    short = replace(settings, activation_cache="off", epochs=(budget.steps - 0.5) / an_epoch)
    done = 0

    def attempt(rate: float) -> Evaluation | None:
        nonlocal done
        done += 1
        label = f"learning rate {rate:g}, at most {MOST_TRIED} short trainings ({done})"
        loaded = task.load(seed)
        most_tokens = settings.batch_size * max(map(len, data.examples))
        with TemporaryDirectory() as place, reporter.stage(label, budget.steps, "steps") as progress:
            try:
                own = replace(short, learning_rate=rate)
                train(loaded, data, selection, own, RunOutput(Path(place) / "run"), seed=seed, progress=progress)
            except TrainingError:
                return None
        return evaluate(loaded.model, task.encoder, judged, loaded.pad_id, most_tokens=min(TOKEN_BUDGET, most_tokens))

    chosen, tried, metric = search(rule, attempt)
    return RateSearch(
        chosen, rule, tuple(tried), metric, budget.steps, len(judged), round(budget.share * len(tried), 4)
    )


def _budget(
    task: Task, selection: Selection, settings: TrainSettings, rows: tuple[int, int], size: StepSize
) -> Budget | str:
    """How long each short training may be, or why there is none.

    Args:
        rows: to train on, and the most to judge by.
        size: of a training step.
    """
    trained_on, most_judged = rows
    model = empty_model(task.model, task.table.kind, max(1, len(task.classes)))
    stack, layers = selection.stack(model), selection.selected_layers
    config = task.adapter(settings)
    if config is not None:
        config = with_ranks(model, stack, layers, config, settings.ranks)
        config = config if selection.modules is None else selection.config_for(model, config)
    steps, accumulated = settings.steps(trained_on), settings.gradient_accumulation
    strategy, kept = parse_strategy(settings.strategy), settings.activation_cache != "off" and settings.num_epochs > 1
    try:
        planner = Planner(model, stack, config)
        step = planner.step(layers, size)
        length = Length(steps * accumulated, settings.num_epochs, kept)
        whole = planner.training(layers, size, strategy, length).flops
    except LayersiftError as error:
        return f"its FLOPs cannot be planned: {error}"
    each, a_step = MOST_SPENT * whole / MOST_TRIED, step.flops * accumulated
    a_row = step.forward_flops[-1] / min(settings.batch_size, trained_on)
    judged = min(most_judged, int(JUDGING * each / a_row))
    affordable = int((each - judged * a_row) / a_step)
    if affordable < FEWEST_STEPS or judged < FEWEST_HELD_BACK:
        least = max(FEWEST_STEPS * a_step / (1 - JUDGING), FEWEST_HELD_BACK * a_row / JUDGING)
        needed = math.ceil(steps * least / each)
        return (
            f"{MOST_TRIED} trainings of {FEWEST_STEPS} steps are more than {MOST_SPENT:.0%} of the FLOPs of this one's "
            f"{steps}; about {needed:,} steps would be enough"
        )
    count = min(affordable, steps)
    return Budget(count, judged, (count * a_step + judged * a_row) / whole)


def search(rule: float, attempt: Try) -> tuple[float, list[TriedRate], str]:
    """Try rates around the rule's and choose one.

    First the rule's and its neighbours; then the next lower one, where the rule's collapsed or the lower neighbour is
    significantly better.

    Returns:
        The rate chosen, all that were tried in ascending order, and the name of the score.

    Raises:
        TrainingError: every training diverged.
    """
    trials: dict[int, Evaluation | None] = {}

    def rate(power: int) -> float:
        return float(f"{rule * STEP**power:.2g}") if power else rule

    for power in (0, 1, -1):
        trials[power] = attempt(rate(power))
    collapsed = _collapsed(trials)
    alike = _alike(trials, collapsed)
    if 0 in collapsed or (alike and max(alike) == -1):
        trials[-2] = attempt(rate(-2))
    collapsed = _collapsed(trials)
    alike = _alike(trials, collapsed)
    if not alike:
        raise TrainingError(
            f"at no learning rate from {rate(min(trials)):g} to {rate(max(trials)):g} does a short training stay "
            "finite; give --learning-rate, or see whether the data and the model are sound"
        )
    metric = next(next(iter(one.metrics)) for one in trials.values() if one is not None)
    tried = [TriedRate(rate(p), None if of is None else _score(of), p in collapsed) for p, of in sorted(trials.items())]
    return rate(_middle(alike, collapsed)), tried, metric


def _score(judged: Evaluation) -> float | None:
    return next(iter(judged.metrics.values()))


def _signed_score(judged: Evaluation) -> float:
    score = _score(judged)
    return -math.inf if score is None else unit_of(next(iter(judged.metrics))).sign * score


def _collapsed(trials: dict[int, Evaluation | None]) -> set[int]:
    """Powers at which the training diverged, or scores far less than at a lower rate."""

    def best_below(power: int) -> float:
        return max(
            (_signed_score(one) for p, one in trials.items() if one is not None and p < power), default=-math.inf
        )

    return {p for p, one in trials.items() if one is None or _signed_score(one) < best_below(p) - COLLAPSED}


def _alike(trials: dict[int, Evaluation | None], collapsed: set[int]) -> list[int]:
    """Powers that are not significantly worse than the best, ascending."""
    sound = {p: one for p, one in trials.items() if one is not None and p not in collapsed}
    if not sound:
        return []
    best = max(sound, key=lambda p: (_signed_score(sound[p]), -abs(p)))
    return sorted(p for p, one in sound.items() if p == best or not _worse(one, sound[best]))


def _worse(one: Evaluation, best: Evaluation) -> bool:
    """Whether the paired difference over the rows does not hold zero; of scores that are no means never."""
    apart = difference(one_run(one), one_run(best))
    return apart is not None and not apart.holds_zero


def _middle(alike: Sequence[int], collapsed: set[int]) -> int:
    """The rule's rate where it is as good as any lower one, or only higher ones are better; else of the lower ones that
    are alike the one in the middle. None next to a collapse while a lower one is alike."""
    safe = [p for p in alike if p + 1 not in collapsed and p <= 0] or [min(0, *alike)]
    return 0 if 0 in safe else safe[(len(safe) - 1) // 2]
