"""The rows of an experiment's tables, and the variants behind each: what criteria choose, and baselines beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from layersift.adapt.methods import ATTENTION, MLP, alpha_at_rank, has_rank, scales_by_root
from layersift.config.quantities import mask_of
from layersift.config.recipe import Recipe, TaskKind
from layersift.config.train import AUTO, CONVERGING, SKIPPING, STATIC, TrainSettings, parse_strategy
from layersift.config.variants import BASE as BASE
from layersift.experiment.cell import Jobs
from layersift.experiment.costs import Costs
from layersift.experiment.prepare import Scoring
from layersift.experiment.rates import Rate, choose_rates, of_size, tune
from layersift.progress import Reporter
from layersift.records.runs import Cell, Result, Variant
from layersift.score.criteria import plain
from layersift.select.layers import draw_masks

RANDOM, ALL, MATCHED, LAST = "random", "all", "all, matched rank", "last"
KINDS = {ATTENTION: "all, attention alone", MLP: "all, without attention"}  # one kind of modules


Key = tuple[tuple[str, int, float | None], tuple[Variant, ...]]


@dataclass(frozen=True)
class Choice:
    """A row of a table: a variant, or several that differ in their layers alone, as random draws do."""

    name: str
    size: int  # of its table, and its method
    variants: tuple[Variant, ...]
    scoring_seconds: float | None = None
    budget: float | None = None  # the fraction of all layers' FLOPs that it may take; None: the recipe's epochs
    flops: float | None = None  # FLOPs by those of all layers with the recipe's epochs; None: they are not known

    @classmethod
    def of(cls, name: str, size: int, masks: Sequence[str], train: TrainSettings, **more: Any) -> Choice:
        """A row of masks that are all trained by the same settings."""
        return cls(name, size, tuple(Variant(name, mask, train) for mask in masks), **more)

    @property
    def masks(self) -> tuple[str, ...]:
        """The layers of each variant; one of no digits for the base model."""
        return tuple(variant.mask for variant in self.variants)

    @property
    def train(self) -> TrainSettings:
        """The settings of all its variants."""
        return self.variants[0].train

    @property
    def trained(self) -> bool:
        """Whether it is not the base model."""
        return bool(self.variants[0].mask)

    @property
    def table(self) -> tuple[str, int, float | None]:
        """What it is compared within."""
        return self.train.method, self.size, self.budget

    @property
    def key(self) -> Key:
        """What it is known by, whatever its FLOPs turn out to be."""
        return self.table, self.variants

    def with_settings(self, **settings: Any) -> Choice:
        """The same layers, trained by other settings."""
        train = replace(self.train, **settings)
        return replace(self, variants=tuple(replace(variant, train=train) for variant in self.variants))

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Its cells, for each seed."""
        return [variant.cell(seed) for seed in seeds for variant in self.variants]


def choices_of(
    recipe: Recipe,
    scoring: Scoring,
    sizes: Sequence[int],
    methods: Sequence[str],
    costs: Costs,
) -> list[Choice]:
    """The rows of all tables of a comparison: criteria, and what they are held against. None has a learning rate of
    its own or FLOPs yet.

    Raises:
        LayersiftError: a budget is not enough for one step.
    """
    choices = []
    draws = {size: _random_masks(recipe, scoring, size) for size in sizes}
    for method in methods:
        train = replace(recipe.train, method=method)
        for size in sizes:
            choices += _of_equal_length(recipe, scoring, draws[size], train)
            if costs.why_not(method) is None:
                choices += _kinds_of_modules(recipe, costs, size, train)
                choices += _of_equal_cost(recipe, costs, size, train)
    return choices


def _random_masks(recipe: Recipe, scoring: Scoring, size: int) -> tuple[str, ...]:
    """The random draws of a size, none of which is another row's choice as far as others remain."""
    layers = scoring.stack.num_layers
    others = {mask_of(s.layers, layers) for s in scoring.scored if s.scores.criterion != plain.RANDOM.name}
    return draw_masks(layers, size, recipe.compare.random, recipe.seed, {*others, _last_mask(layers, size)})


def _last_mask(layers: int, size: int) -> str:
    return "0" * (layers - size) + "1" * size


def _of_equal_length(recipe: Recipe, scoring: Scoring, draws: tuple[str, ...], train: TrainSettings) -> list[Choice]:
    """Rows that are trained for the recipe's epochs."""
    layers, size = scoring.stack.num_layers, draws[0].count("1")
    chosen = [
        Choice.of(s.scores.criterion, size, [mask_of(s.layers, layers)], train, scoring_seconds=s.scores.seconds)
        for s in scoring.scored
        if s.size == size and s.scores.criterion != plain.RANDOM.name
    ]
    choices = list(chosen)
    if not any(choice.name == LAST for choice in choices):
        choices.append(Choice.of(LAST, size, [_last_mask(layers, size)], train))
    every = ["1" * layers]
    choices += [Choice.of(RANDOM, size, draws, train), Choice.of(ALL, size, every, train)]
    if has_one_rank(train):
        choices.append(Choice.of(MATCHED, size, every, at_rank(train, train.rank * size / layers)))
    skipping, others = _strategies(recipe, train.method, layers)
    reaching = [choice for choice in chosen if "0" in choice.masks[0].lstrip("0")]
    choices += [
        Choice.of(
            f"{choice.name}, {text}",
            size,
            choice.masks,
            replace(train, strategy=text),
            scoring_seconds=choice.scoring_seconds,
        )
        for choice in reaching
        for text in skipping
    ]
    choices += [Choice.of(text, size, every, replace(train, strategy=text)) for text in others]
    choices.append(Choice.of(BASE, size, [""], train))
    return choices


def has_one_rank(train: TrainSettings) -> bool:
    """Whether one rank, that of the settings, holds for all modules."""
    return has_rank(train.method) and not train.ranks and "r" not in train.method_options


def at_rank(train: TrainSettings, wanted: float) -> TrainSettings:
    """The settings at the nearest rank, with the alpha by which updates are scaled as in the other rows."""
    rank, by_root = max(1, round(wanted)), scales_by_root(train.method, train.method_options)
    return replace(train, rank=rank, alpha=alpha_at_rank(train.alpha, train.rank, rank, by_root))


def _strategies(recipe: Recipe, method: str, layers: int) -> tuple[list[str], list[str]]:
    """Those that can be followed with the method: on what criteria choose, and on all layers.

    Skipping saves nothing where every layer from the first trained one on carries adapters.
    """
    if method == "adalora":
        return [], []
    strategies = {text: parse_strategy(text) for text in recipe.compare.strategies}
    for strategy in strategies.values():
        strategy.require_layers(range(layers), layers)
    skipping = [text for text, strategy in strategies.items() if strategy.name == SKIPPING]
    return skipping, [text for text, strategy in strategies.items() if strategy.name not in (STATIC, SKIPPING)]


def _kinds_of_modules(recipe: Recipe, costs: Costs, size: int, train: TrainSettings) -> list[Choice]:
    """One kind of modules alone in all layers, with about as many parameters as the chosen layers have."""
    layers = costs.stack.num_layers
    if not has_one_rank(train):
        return []
    parameters = costs.parameters(Variant(LAST, _last_mask(layers, size), train))
    choices = []
    for kind, targets in costs.kinds(train.method).items():
        alone = replace(train, target_modules=targets)
        each = costs.parameters(Variant(KINDS[kind], "1" * layers, alone)) / train.rank
        choices.append(Choice.of(KINDS[kind], size, ["1" * layers], at_rank(alone, parameters / each)))
    return choices


def _of_equal_cost(recipe: Recipe, costs: Costs, size: int, train: TrainSettings) -> list[Choice]:
    """All layers, the last ones and the strategies, each trained for as long as a budget of FLOPs allows."""
    layers = costs.stack.num_layers
    everywhere = Choice.of(ALL, size, ["1" * layers], train)
    last = Choice.of(LAST, size, [_last_mask(layers, size)], train)
    # What converging is going to cost is not known before.
    known = [s for s in _strategies(recipe, train.method, layers)[1] if parse_strategy(s).name != CONVERGING]
    strategies = [Choice.of(text, size, everywhere.masks, replace(train, strategy=text)) for text in known]
    choices = []
    for budget in recipe.compare.budgets or [costs.share(last.variants[0].cell(recipe.seed)), 1.0]:
        for choice in (everywhere, last, *strategies):
            epochs = costs.epochs_within(choice.variants[0].cell(recipe.seed), budget)
            same = abs(epochs - train.num_epochs) < 1e-9
            choices.append(replace(choice.with_settings(epochs=train.epochs if same else epochs), budget=budget))
    return choices


def with_flops(recipe: Recipe, choices: Sequence[Choice], results: Mapping[Cell, Result], costs: Costs) -> list[Choice]:
    """The rows with their FLOPs, also of those that could not be planned before they were trained."""
    return [replace(choice, flops=_flops(recipe, choice, results, costs)) for choice in choices]


def _flops(recipe: Recipe, choice: Choice, results: Mapping[Cell, Result], costs: Costs) -> float | None:
    if not choice.trained or costs.why_not(choice.train.method) is not None:
        return None
    cells = [cell for cell in choice.cells([recipe.seed]) if parse_strategy(cell.train.strategy).name != CONVERGING]
    if not cells:  # where layers settle is known once they have
        own = {(cell.mask, cell.train) for cell in choice.cells([recipe.seed])}
        cells = [r.followed for c, r in results.items() if (c.mask, c.train) in own and r.strategy_followed]
    return float(np.mean([costs.share(cell) for cell in cells])) if cells else None


def with_rates(
    recipe: Recipe, choices: Sequence[Choice], num_layers: int, kind: TaskKind, jobs: Jobs, reporter: Reporter
) -> tuple[list[Choice], dict[str, Rate]]:
    """The rows with their learning rates, and the rates by what they are for.

    Without rates to choose among, or ``auto``, each row has the recipe's, or the default of its own layers and rank.
    Rows of equal cost have the rate of the same layers with the recipe's epochs.

    Raises:
        LayersiftError: see :func:`layersift.experiment.rates.tune`.
    """
    trained = [choice for choice in choices if choice.trained]
    name: Callable[[Choice], str] = _rate_of_size
    chosen = len(recipe.compare.learning_rates) > 1 or recipe.train.learning_rate == AUTO
    if recipe.compare.tune == "each" or not chosen:
        name = partial(_own_rate, shared=recipe.train)
        cells = {
            name(choice): choice.variants[0].cell(recipe.seed, "validation").with_settings(epochs=recipe.train.epochs)
            for choice in trained
        }
        rates = tune(recipe, cells, kind, jobs, reporter)
    else:
        counts, methods = dict.fromkeys(map(_count, trained)), dict.fromkeys(choice.train.method for choice in trained)
        masks = masks_of(trained)
        by_size = choose_rates(recipe, list(counts), num_layers, list(methods), kind, jobs, reporter, masks)
        rates = {of_size(*key): rate for key, rate in by_size.items()}
    return [
        choice.with_settings(learning_rate=rates[name(choice)].chosen) if choice.trained else choice
        for choice in choices
    ], rates


def masks_of(choices: Sequence[Choice]) -> set[str]:
    """The masks of all rows."""
    return {mask for choice in choices for mask in choice.masks}


def draw_notices(choices: Sequence[Choice], asked: int) -> tuple[str, ...]:
    """What is to be said of random rows: fewer draws than were asked for, or layers that another row has."""
    notices: dict[str, None] = {}
    for choice in (r for r in choices if r.name == RANDOM):
        others = masks_of([r for r in choices if r.name != RANDOM and r.table == choice.table])
        shared = len(others.intersection(choice.masks))
        size = _count(choice)
        if shared:
            notices[f"random {size} layers: {shared} of {len(choice.masks)} draws are another row's layers"] = None
        if len(choice.masks) < asked:
            notices[f"random {size} layers: {len(choice.masks)} draws, not {asked}, since no other choices remain"] = (
                None
            )
    return tuple(notices)


def _count(choice: Choice) -> int:
    return choice.masks[0].count("1")


def _rate_of_size(choice: Choice) -> str:
    """Rows of one name have one learning rate: here those of a method and a number of layers."""
    return of_size(choice.train.method, _count(choice))


def _own_rate(choice: Choice, shared: TrainSettings) -> str:
    """Here those that train the same layers in the same way, for however long."""
    alone = choice.name if choice.name in KINDS.values() else ""
    rank = f"rank {choice.train.rank}" if alone or choice.name == MATCHED else ""
    strategy = "" if choice.train.strategy == shared.strategy else choice.train.strategy
    return ", ".join(word for word in (choice.train.method, choice.masks[0], strategy, alone, rank) if word)
