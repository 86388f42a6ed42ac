"""The rows of an experiment's tables: choices of layers, and the cells that stand behind each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layersift.adapt.methods import alpha_at_rank, has_rank, scales_by_root
from layersift.adapt.ranks import ATTENTION, MLP
from layersift.config.inputs import TaskKind
from layersift.config.recipe import Recipe
from layersift.config.train import DROPPING, SETTLING, STATIC, TrainSettings, parse_strategy
from layersift.config.variants import UNTOUCHED as UNTOUCHED
from layersift.experiment.costs import Costs
from layersift.experiment.rates import Rate, choose_rates, of_size, tune
from layersift.experiment.scoring import Scoring
from layersift.progress import Reporter
from layersift.records.result import Cell, Result
from layersift.records.scores import mask_of
from layersift.score.criteria import plain
from layersift.select.layers import draw_masks

RANDOM, ALL, MATCHED, LAST = "random", "all", "all, matched rank", "last"
KINDS = {ATTENTION: "all, attention alone", MLP: "all, without attention"}  # one kind of modules


@dataclass(frozen=True)
class Choice:
    """A choice of layers: a row of a table, and which trainings stand behind it."""

    name: str
    size: int
    method: str
    masks: tuple[str, ...]  # several for random layers; empty digits where nothing is trained
    learning_rate: float
    rank: int
    alpha: float
    scoring_seconds: float | None = None
    strategy: str = ""  # the recipe's
    epochs: float = 0.0  # 0: the recipe's
    target_modules: str = ""  # the recipe's
    budget: float | None = None  # the share of all layers' operations that it may take; None: the recipe's epochs
    operations_in_memory: float | None = None  # where it has no more memory than the last layers take; None: it cannot
    operations: float | None = None  # by those of all layers with the recipe's epochs; None: they cannot be planned

    @property
    def table(self) -> tuple[str, int, float | None]:
        """What it is compared within."""
        return self.method, self.size, self.budget

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Its cells, for each seed."""
        return [self.cell(mask, seed) for seed in seeds for mask in self.masks]

    def is_of(self, cell: Cell) -> bool:
        """Whether a cell is one of its."""
        return cell.mask in self.masks and cell == self.cell(cell.mask, cell.seed)

    def cell(self, mask: str, seed: int) -> Cell:
        """The cell of a mask and a seed."""
        if not mask:
            return Cell("", seed)
        return Cell(
            mask,
            seed,
            self.method,
            self.learning_rate,
            self.rank,
            self.alpha,
            strategy=self.strategy,
            epochs=self.epochs,
            target_modules=self.target_modules,
        )


def choices_of(
    recipe: Recipe,
    scoring: Scoring,
    sizes: Sequence[int],
    methods: Sequence[str],
    costs: Costs,
) -> list[Choice]:
    """The rows of all tables of a comparison: criteria, and what they are held against. None has a learning rate or
    FLOPs yet.

    Raises:
        LayersiftError: a budget is not enough for one step.
    """
    found = []
    draws = {size: _random_rows(recipe, scoring, size) for size in sizes}
    for method in methods:
        for size in sizes:
            found += _of_equal_length(recipe, scoring, draws[size], method)
            if costs.why_not(method) is None:
                found += _kinds_of_modules(recipe, costs, size, method)
                found += _of_equal_cost(recipe, costs, size, method)
    return found


def _random_rows(recipe: Recipe, scoring: Scoring, size: int) -> tuple[str, ...]:
    """The random draws of a size, none of which is another row's choice as far as others remain."""
    layers = scoring.stack.num_layers
    others = {mask_of(s.layers, layers) for s in scoring.scored if s.scores.criterion != plain.RANDOM.name}
    return draw_masks(layers, size, recipe.compare.random, recipe.seed, {*others, "0" * (layers - size) + "1" * size})


def _of_equal_length(recipe: Recipe, scoring: Scoring, draws: tuple[str, ...], method: str) -> list[Choice]:
    """Choices that are trained for the recipe's epochs."""
    train, layers, size = recipe.train, scoring.stack.num_layers, draws[0].count("1")
    found = []
    for scored in (s for s in scoring.scored if s.size == size):
        if scored.scores.criterion == plain.RANDOM.name:
            continue
        mask, seconds = mask_of(scored.layers, layers), scored.scores.seconds
        name = scored.scores.criterion
        found.append(Choice(name, size, method, (mask,), 0.0, train.rank, train.alpha, seconds))
    chosen = tuple(found)
    if not any(choice.name == LAST for choice in found):
        found.append(_last(layers, size, method, train))
    everywhere = Choice(ALL, size, method, ("1" * layers,), 0.0, train.rank, train.alpha)
    found += [Choice(RANDOM, size, method, draws, 0.0, train.rank, train.alpha), everywhere]
    if has_rank(method) and not train.ranks and "r" not in train.method_options:
        rank = max(1, round(train.rank * size / layers))
        found.append(replace(everywhere, name=MATCHED, rank=rank, alpha=_alpha_at(rank, method, train)))
    dropping, others = _strategies(recipe, method, layers)
    reaching = [choice for choice in chosen if "0" in choice.masks[0].lstrip("0")]
    found += [replace(c, name=f"{c.name}, {text}", strategy=text) for c in reaching for text in dropping]
    found += [replace(everywhere, name=text, strategy=text) for text in others]
    found.append(Choice(UNTOUCHED, size, method, ("",), 0.0, train.rank, train.alpha))
    return found


def _strategies(recipe: Recipe, method: str, layers: int) -> tuple[list[str], list[str]]:
    """Those that can be followed with the method: on what criteria choose, and on all layers.

    Dropping saves nothing where every layer from the first trained one on carries adapters.
    """
    if method == "adalora":
        return [], []
    strategies = {text: parse_strategy(text) for text in recipe.compare.strategies}
    for strategy in strategies.values():
        strategy.require_layers(range(layers), layers)
    dropping = [text for text, strategy in strategies.items() if strategy.name == DROPPING]
    return dropping, [text for text, strategy in strategies.items() if strategy.name not in (STATIC, DROPPING)]


def _last(layers: int, size: int, method: str, train: TrainSettings) -> Choice:
    return Choice(LAST, size, method, ("0" * (layers - size) + "1" * size,), 0.0, train.rank, train.alpha)


def _kinds_of_modules(recipe: Recipe, costs: Costs, size: int, method: str) -> list[Choice]:
    """One kind of modules alone in all layers, with about as many parameters as the chosen layers have."""
    train, layers = recipe.train, costs.stack.num_layers
    if not has_rank(method) or train.ranks or "r" in train.method_options:
        return []
    last = _last(layers, size, method, train)
    wanted = costs.parameters(last.cell(last.masks[0], recipe.seed))
    found = []
    for kind, targets in costs.kinds(method).items():
        alone = Choice(KINDS[kind], size, method, ("1" * layers,), 0.0, train.rank, train.alpha, target_modules=targets)
        each = costs.parameters(alone.cell(alone.masks[0], recipe.seed)) / train.rank
        rank = max(1, round(wanted / each))
        found.append(replace(alone, rank=rank, alpha=_alpha_at(rank, method, train)))
    return found


def _alpha_at(rank: int, method: str, train: TrainSettings) -> float:
    """The alpha by which updates of another rank are scaled as in the other rows."""
    return alpha_at_rank(train.alpha, train.rank, rank, scales_by_root(method, train.method_options))


def _of_equal_cost(recipe: Recipe, costs: Costs, size: int, method: str) -> list[Choice]:
    """All layers, the last ones and the strategies, each trained for as long as a budget of operations allows."""
    train, layers = recipe.train, costs.stack.num_layers
    everywhere = Choice(ALL, size, method, ("1" * layers,), 0.0, train.rank, train.alpha)
    last = _last(layers, size, method, train)
    # What settling is going to cost is not known before.
    known = [s for s in _strategies(recipe, method, layers)[1] if parse_strategy(s).name != SETTLING]
    strategies = [replace(everywhere, name=text, strategy=text) for text in known]
    own = costs.share(last.cell(last.masks[0], recipe.seed))
    found = []
    for budget in recipe.compare.budgets or [own, 1.0]:
        for choice in (everywhere, last, *strategies):
            epochs = costs.epochs_within(choice.cell(choice.masks[0], recipe.seed), budget)
            same = abs(epochs - train.num_epochs) < 1e-9
            found.append(replace(choice, budget=budget, epochs=0.0 if same else epochs))
    return found


def _with_costs(choice: Choice, recipe: Recipe, costs: Costs) -> Choice:
    """With its operations, as far as they are known before it is trained."""
    follows = choice.strategy and parse_strategy(choice.strategy).name == SETTLING
    if choice.name == UNTOUCHED or follows or costs.why_not(choice.method) is not None:
        return choice
    cells = [choice.cell(mask, recipe.seed) for mask in choice.masks]
    found = replace(choice, operations=float(np.mean([costs.share(cell) for cell in cells])))
    if choice.budget is not None:
        return found
    last = _last(costs.stack.num_layers, choice.size, choice.method, recipe.train)
    other = last.cell(last.masks[0], recipe.seed)
    shares = [costs.share_in_memory(cell, other) for cell in cells]
    known = [share for share in shares if share is not None]
    return replace(found, operations_in_memory=float(np.mean(known)) if len(known) == len(shares) else None)


def with_operations(
    recipe: Recipe, choices: Sequence[Choice], results: Mapping[Cell, Result], costs: Costs
) -> list[Choice]:
    """The choices with their operations, also of those that could not be planned before they were trained."""
    found = []
    for choice in (_with_costs(choice, recipe, costs) for choice in choices):
        done = [r.followed for c, r in results.items() if r.strategy_followed and choice.is_of(c)]
        shares = [costs.share(cell) for cell in done]
        found.append(replace(choice, operations=float(np.mean(shares))) if shares else choice)
    return found


def with_rates(
    recipe: Recipe, choices: Sequence[Choice], num_layers: int, kind: TaskKind, jobs: int, reporter: Reporter
) -> tuple[list[Choice], dict[str, Rate]]:
    """The choices with their learning rates, and the rates by what they are for.

    Without rates to choose among, each row has the recipe's, or the default of its own layers and rank. Rows of equal
    cost have the rate of the same choice with the recipe's epochs.

    Raises:
        LayersiftError: see :func:`layersift.experiment.rates.tune`.
    """
    trained = [choice for choice in choices if choice.masks[0]]
    if recipe.compare.tune == "each" or len(recipe.compare.learning_rates) < 2:
        name = _row
        cells = {name(c): replace(c.cell(c.masks[0], recipe.seed), judged="validation", epochs=0.0) for c in trained}
        rates = tune(recipe, cells, kind, jobs, reporter)
    else:
        name = _size
        counts, methods = dict.fromkeys(map(_count, trained)), dict.fromkeys(c.method for c in trained)
        rows = masks_of(trained)
        by_size = choose_rates(recipe, list(counts), num_layers, list(methods), kind, jobs, reporter, rows)
        rates = {of_size(*key): rate for key, rate in by_size.items()}
    return [replace(c, learning_rate=rates[name(c)].chosen) if c.masks[0] else c for c in choices], rates


def masks_of(choices: Sequence[Choice]) -> set[str]:
    """The masks of all rows."""
    return {mask for choice in choices for mask in choice.masks}


def draw_notices(choices: Sequence[Choice], asked: int) -> tuple[str, ...]:
    """What is to be said of random rows: fewer draws than were asked for, or layers that another row has."""
    notices: dict[str, None] = {}
    for choice in (c for c in choices if c.name == RANDOM):
        others = masks_of([c for c in choices if c.name != RANDOM and c.table == choice.table])
        shared = len(others.intersection(choice.masks))
        size = choice.masks[0].count("1")
        if shared:
            notices[f"random {size} layers: {shared} of {len(choice.masks)} draws are another row's layers"] = None
        if len(choice.masks) < asked:
            notices[f"random {size} layers: {len(choice.masks)} draws, not {asked}, since no other choices remain"] = (
                None
            )
    return tuple(notices)


def _count(choice: Choice) -> int:
    return choice.masks[0].count("1")


def _size(choice: Choice) -> str:
    """Choices of one name have one learning rate: here those of a method and a number of layers."""
    return of_size(choice.method, _count(choice))


def _row(choice: Choice) -> str:
    """Here those that train the same layers in the same way, for however long."""
    alone = choice.name if choice.name in KINDS.values() else ""
    rank = f"rank {choice.rank}" if alone or choice.name == MATCHED else ""
    return ", ".join(word for word in (choice.method, choice.masks[0], choice.strategy, alone, rank) if word)
