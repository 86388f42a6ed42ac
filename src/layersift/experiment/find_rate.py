"""A learning rate found on the user's own rows: a few short trainings around the rule's rate, judged on rows held back.

Short trainings like higher rates than long ones, so that they cannot say that the rule's rate is too low: it is never
raised. It is lowered where a lower one is significantly better, where it collapsed, or where its upper neighbour did
and a lower one is as good: a rate next to a collapse may collapse with another seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from layersift.adapt.ranks import with_ranks
from layersift.config.defaults import Trained, default_rate, fill_epochs, hidden_size
from layersift.config.train import TrainSettings, parse_strategy
from layersift.data.split import split_off
from layersift.data.table import Table
from layersift.errors import LayersiftError, TrainingError
from layersift.evaluation.metrics import TOKEN_BUDGET, Evaluation, evaluate, one_run
from layersift.experiment.costs import mean_size
from layersift.models.load import empty_model
from layersift.plan.planner import Planner
from layersift.plan.training import Length, StepSize
from layersift.progress import Reporter
from layersift.records.data import describe
from layersift.records.run_record import RateSearch, TriedRate
from layersift.records.selection import Selection
from layersift.statistics.intervals import difference
from layersift.statistics.verdicts import unit_of
from layersift.task import Task
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput

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
    short = replace(settings, prefix_cache="off", epochs=(budget.steps - 0.5) / an_epoch)
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
    strategy, kept = parse_strategy(settings.strategy), settings.prefix_cache != "off" and settings.num_epochs > 1
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


def _signed(judged: Evaluation) -> float:
    score = _score(judged)
    return -math.inf if score is None else unit_of(next(iter(judged.metrics))).sign * score


def _collapsed(trials: dict[int, Evaluation | None]) -> set[int]:
    """Powers at which the training diverged, or scores far less than at a lower rate."""

    def best_below(power: int) -> float:
        return max((_signed(one) for p, one in trials.items() if one is not None and p < power), default=-math.inf)

    return {p for p, one in trials.items() if one is None or _signed(one) < best_below(p) - COLLAPSED}


def _alike(trials: dict[int, Evaluation | None], collapsed: set[int]) -> list[int]:
    """Powers that are not significantly worse than the best, ascending."""
    sound = {p: one for p, one in trials.items() if one is not None and p not in collapsed}
    if not sound:
        return []
    best = max(sound, key=lambda p: (_signed(sound[p]), -abs(p)))
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
