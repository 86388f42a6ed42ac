"""What trainings cost in FLOPs and memory, by the plan, so that a busy machine does not matter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from layersift.adapt.methods import kinds_of_modules, with_ranks
from layersift.config.recipe import Recipe, TaskKind
from layersift.config.train import STATIC, TrainSettings, parse_strategy
from layersift.data.examples import Example, image_of
from layersift.errors import LayersiftError
from layersift.experiment.prepare import Prepared
from layersift.models.load import empty_model
from layersift.models.stacks import BlockStack, find_stack
from layersift.plan.planner import MeasuredModel, Plan, Planner
from layersift.plan.training import Length, StepSize, TrainingPlan
from layersift.records.runs import Cell, Variant
from layersift.training.kept_states import keeps_states

LONGEST = 64  # times as long as all layers' training, for the cheapest choice
ROUNDING = 1e-9


def mean_size(examples: Sequence[Example], kind: TaskKind, train: TrainSettings) -> StepSize:
    """What a step of a training is run on, on average."""
    responses = [sum(e.response) / max(1, len(e)) for e in examples if e.response is not None]
    responses += [len(e.target) / max(1, len(e)) for e in examples if e.target is not None]
    return StepSize(
        kind=kind,
        batch_size=min(train.batch_size, len(examples)),
        tokens=max(1, round(sum(len(e) for e in examples) / len(examples))),
        response_share=min(1.0, sum(responses) / len(responses)) if responses else 1.0,
        checkpointing=train.gradient_checkpointing,
        image=image_of(examples),
    )


def least_changed(train: TrainSettings, fits: Callable[[TrainSettings], bool], devices: int = 1) -> TrainSettings:
    """The same training, to rounding, in as little memory as it has to: as it is, or with the largest batches that fit,
    accumulated, and at last with checkpointing. Where none fits, as it takes the least.

    Args:
        devices: that share each batch.
    """
    if fits(train):
        return train
    ways = ways_to_run(train, devices)
    if not fits(ways[-1][-1]):
        return ways[-1][-1]
    enough = next(sizes for sizes in ways if fits(sizes[-1]))
    return enough[bisect_left(enough, True, key=fits)]


def ways_to_run(train: TrainSettings, devices: int = 1) -> list[list[TrainSettings]]:
    """The same training, to rounding, with smaller and smaller batches that are accumulated; then checkpointed, too.

    Args:
        devices: that share each batch evenly.
    """
    ways, size, times = [train], train.batch_size, train.gradient_accumulation
    while size % (2 * devices) == 0:
        size, times = size // 2, times * 2
        ways.append(replace(train, batch_size=size, gradient_accumulation=times))
    if train.gradient_checkpointing:
        return [ways]
    return [ways, [replace(one, gradient_checkpointing=True) for one in ways]]


class Costs:
    """What trainings on a recipe's rows cost, in FLOPs, memory and parameters."""

    def __init__(self, recipe: Recipe, prepared: Prepared) -> None:
        self.recipe, self.task, self.examples = recipe, prepared.task, prepared.train.examples
        self.encoder = prepared.encoder
        self.kind: TaskKind = self.encoder.kind
        self.model = empty_model(recipe.model, self.kind, max(1, len(self.encoder.classes)))
        self.stack: BlockStack = find_stack(self.model, recipe.select.tower)
        self.longest = max(map(len, self.examples))  # tokens
        self._size = mean_size(self.examples, self.kind, recipe.train)  # reads all examples
        self._measured = MeasuredModel(self.model, self.stack)
        self._planners: list[tuple[TrainSettings, tuple[int, ...], Planner]] = []
        self._keeps_states: dict[tuple[Planner, tuple[int, ...], str, str, bool], bool] = {}
        self._why_not: dict[str, str | None] = {}

    def planner(self, settings: TrainSettings, layers: tuple[int, ...]) -> Planner:
        """The costs of all trainings with the same adapters.

        Args:
            layers: that carry them.

        Raises:
            AdapterError: see :func:`layersift.adapt.methods.make_config`, :func:`layersift.adapt.methods.with_ranks`.
        """
        adapters = TrainSettings(
            method=settings.method,
            method_options=settings.method_options,
            rank=settings.rank,
            ranks=settings.ranks,
            alpha=settings.alpha,
            dropout=settings.dropout,
            target_modules=settings.target_modules,
        )
        ranked = layers if settings.ranks else ()  # ranks name modules of the layers that are chosen
        for known, of, planner in self._planners:
            if known == adapters and of == ranked:
                return planner
        config = self.task.adapter(adapters)
        if config is not None:
            config = with_ranks(self.model, self.stack, layers, config, settings.ranks)
        planner = Planner(self.model, self.stack, config, self._measured)
        self._planners.append((adapters, ranked, planner))
        return planner

    def training(self, layers: tuple[int, ...], settings: TrainSettings, passes: int, seed: int) -> TrainingPlan:
        """The cost of so many forward and backward passes, on batches of the mean length.

        Raises:
            AdapterError, ModelError: it cannot be planned.
        """
        kept = settings.num_epochs > 1 and self._keeps(layers, settings)
        length = Length(passes, settings.num_epochs, kept)
        planner = self.planner(settings, layers)
        return planner.training(layers, self._size_of(settings), parse_strategy(settings.strategy), length, seed)

    def heaviest_step(self, layers: tuple[int, ...], settings: TrainSettings, tokens: int | None = None) -> Plan:
        """The step that takes the most memory, on samples of so many tokens, by default the longest.

        Raises:
            AdapterError, ModelError: it cannot be planned.
        """
        size = replace(self._size_of(settings), tokens=tokens or self.longest)
        return self.planner(settings, layers).heaviest_step(layers, size, parse_strategy(settings.strategy))

    def _size_of(self, settings: TrainSettings) -> StepSize:
        """Of a step on samples of the mean length."""
        batch_size = min(settings.batch_size, len(self.examples))
        return replace(self._size, batch_size=batch_size, checkpointing=settings.gradient_checkpointing)

    def _keeps(self, layers: tuple[int, ...], settings: TrainSettings) -> bool:
        """Whether later epochs begin at the first trained block."""
        planner = self.planner(settings, layers)
        key = (planner, layers, settings.strategy, settings.activation_cache, settings.prefix_dropout)
        if key not in self._keeps_states:
            several, seq2seq = replace(settings, epochs=2.0), self.encoder.seq2seq
            with planner.adapted_model(layers) as adapted:
                self._keeps_states[key] = keeps_states(adapted, several, self.examples, seq2seq=seq2seq)
        return self._keeps_states[key]

    def why_not(self, method: str) -> str | None:
        """Why trainings with a method cannot be planned; None where they can."""
        if method not in self._why_not:
            try:
                self.plan(self._everywhere(method, self.recipe.seed))
            except LayersiftError as error:
                self._why_not[method] = str(error)
            else:
                self._why_not[method] = None
        return self._why_not[method]

    def plan(self, cell: Cell) -> TrainingPlan:
        """The cost of a cell's training, by optimizer steps, each of one batch: accumulated ones are not counted.

        Raises:
            AdapterError, ModelError: it cannot be planned.
        """
        return self.training(cell.layers, cell.train, cell.train.steps(len(self.examples)), cell.seed)

    def kinds(self, method: str) -> dict[str, str]:
        """Target modules of each kind alone; see :func:`layersift.adapt.methods.kinds_of_modules`."""
        settings = replace(self.recipe.train, method=method)
        config = self.task.adapter(settings)
        return kinds_of_modules(self.model, self.stack, config)

    def parameters(self, variant: Variant) -> int:
        """Trained by a variant, a head apart.

        Raises:
            AdapterError: they cannot be told without weights.
        """
        return self.planner(variant.train, variant.layers).parameters(variant.layers)

    def share(self, cell: Cell) -> float:
        """A cell's FLOPs by those of all layers, static, with the recipe's epochs."""
        return self.plan(cell).flops / self._whole(cell)

    def course(self, cell: Cell, shares: Sequence[float]) -> list[float]:
        """The same when a share of its steps is done, for several shares."""
        done = np.cumsum(self.plan(cell).flops_by_step) / self._whole(cell)
        return [float(done[round(share * len(done)) - 1]) for share in shares]

    def _everywhere(self, method: str, seed: int) -> Cell:
        train = replace(self.recipe.train, method=method, strategy=STATIC)
        return Cell("1" * self.stack.num_layers, seed, train)

    def _whole(self, cell: Cell) -> float:
        return self.plan(self._everywhere(cell.train.method, cell.seed)).flops

    def epochs_within(self, cell: Cell, share: float) -> float:
        """For how many epochs a cell is trained within a share of what all layers take; a whole number of steps.

        Raises:
            LayersiftError: not one step is.
        """
        train = self.recipe.train
        each = replace(train, epochs=1.0).steps(len(self.examples))

        def fits(steps: int) -> bool:
            return self.share(cell.with_settings(epochs=steps / each)) <= share * (1 + ROUNDING)

        few, many = 0, train.steps(len(self.examples))
        while many < LONGEST * train.steps(len(self.examples)) and fits(many):
            few, many = many, 2 * many
        while few < many - 1:  # few are affordable, many are not
            middle = (few + many) // 2
            few, many = (middle, many) if fits(middle) else (few, middle)
        if not few:
            raise LayersiftError(f"budget {share:g}: not one step of {cell.mask} is within that share of all layers'")
        return few / each
