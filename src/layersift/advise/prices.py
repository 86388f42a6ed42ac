"""What ways of training on a recipe's rows take, and how each is best run within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from layersift.adapt import store
from layersift.config.limits import Limits
from layersift.config.recipe import Recipe
from layersift.config.train import TrainSettings
from layersift.data.examples import Example, batches_of
from layersift.experiment.costs import Costs, least_changed, mean_size
from layersift.experiment.prepare import Prepared
from layersift.models.load import base_bytes
from layersift.models.stacks import find_stack
from layersift.plan.memory import Memory, tell_bytes
from layersift.plan.training import TrainingPlan
from layersift.progress import Reporter
from layersift.records.runs import Variant
from layersift.step.counters import MOST_SECONDS, seconds_a_step
from layersift.step.losses import own_loss

SAVED_WIDTH = 4  # bytes of an adapter's number on disk


@dataclass(frozen=True)
class Priced:
    """A variant, as it is best run within the memory, and what that takes."""

    variant: Variant
    flops: float  # of the whole training, by those of all layers
    seconds: float  # of the whole training here
    memory: Memory  # at the peak, on the longest rows
    parameters: int
    adapter_bytes: int
    misses: tuple[str, ...] = ()  # what of the limits it exceeds, in words

    @property
    def memory_bytes(self) -> int:
        """Peak, with the base model, as planned."""
        return self.memory.expected

    @property
    def fits(self) -> bool:
        """Whether it keeps to all limits."""
        return not self.misses


@dataclass(frozen=True)
class Remedy:
    """A flag by which less memory is taken, and whether that is little enough."""

    flag: str
    memory: Memory
    fits: bool


class Prices:
    """What trainings on a recipe's rows take."""

    def __init__(self, recipe: Recipe, prepared: Prepared) -> None:
        self.recipe, self._costs = recipe, Costs(recipe, prepared)
        self.model, self.stack = self._costs.model, self._costs.stack
        self.examples: Sequence[Example] = prepared.train.examples
        self.base = base_bytes(self.model, recipe.model.quantization)
        self.whole = self._training(tuple(range(self.stack.num_layers)), recipe.train)

    def of(self, variant: Variant, limits: Limits, pace: float) -> Priced:
        """The variant with the largest batches that fit the memory: accumulated, and at last with checkpointing.

        Where none does, as it takes the least.
        """
        settings = self._within(variant, limits.memory_bytes)
        training = self._training(variant.layers, settings)
        priced = Priced(
            variant=replace(variant, train=settings),
            flops=training.flops / self.whole.flops,
            seconds=training.flops / pace,
            memory=self._memory(variant, settings),
            parameters=training.parameters,
            adapter_bytes=SAVED_WIDTH * training.parameters,
        )
        return replace(priced, misses=tuple(_misses(priced, limits)))

    def _within(self, variant: Variant, most: int | None) -> TrainSettings:
        """The settings that the variant is run with."""

        def fits(settings: TrainSettings) -> bool:
            return most is None or self._memory(variant, settings).needed <= most

        return least_changed(variant.train, fits)

    def what_is_missed(self, priced: Sequence[Priced], limits: Limits) -> Iterator[str]:
        """Of each limit that no variant keeps, by how much the least demanding one misses it."""
        for what, read in MEASURES.items():
            if not all(any(miss.startswith(what) for miss in one.misses) for one in priced):
                continue
            one = min(priced, key=read)
            if what == "memory" and limits.memory_bytes is not None:
                over, high = one.memory.high - limits.memory_bytes, tell_bytes(one.memory.high)
                yield f"it will not fit, by {tell_bytes(over)}: {one.variant.name} takes the least, {high} at most"
            else:
                yield f"the least {what} is that of {one.variant.name}: {_told(what, read(one))}"

    def remedies(self, priced: Sequence[Priced], limits: Limits) -> Iterator[Remedy]:
        """What would take less memory than the least demanding variant, where that does not fit."""
        least, most = min(priced, key=lambda one: one.memory_bytes), limits.memory_bytes
        if most is None or least.memory.needed <= most:
            return
        if self.recipe.model.quantization is None:
            packed = replace(least.memory, base=base_bytes(self.model, "4bit"))
            yield Remedy("--quantization 4bit", packed, packed.needed <= most)
        for share in (2, 4):
            tokens = max(1, self._costs.longest // share)
            shorter = self._memory(least.variant, least.variant.train, tokens)
            yield Remedy(f"--max-length {tokens}", shorter, shorter.needed <= most)

    def share_allowed(self, limits: Limits, pace: float) -> float | None:
        """Of all layers' FLOPs, what the limit of time allows; None without one."""
        return limits.share if limits.seconds is None else limits.seconds * pace / self.whole.flops

    def flops(self, variant: Variant, part: float) -> float:
        """Of a fraction of a variant's training, by those of all layers' whole training."""
        settings = replace(variant.train, epochs=variant.train.num_epochs * part)
        return self._training(variant.layers, settings).flops / self.whole.flops

    def _training(self, layers: tuple[int, ...], settings: TrainSettings) -> TrainingPlan:
        """All forward and backward passes, in the recipe's batches: accumulated ones take as many FLOPs."""
        train = self.recipe.train
        settings = replace(settings, batch_size=train.batch_size, gradient_accumulation=train.gradient_accumulation)
        passes = math.ceil(settings.num_epochs * math.ceil(len(self.examples) / settings.batch_size))
        return self._costs.training(layers, settings, passes, self.recipe.seed)

    def _memory(self, variant: Variant, settings: TrainSettings, tokens: int | None = None) -> Memory:
        return Memory.of(self.base, self._costs.heaviest_step(variant.layers, settings, tokens))

    def measured_pace(self, reporter: Reporter) -> float:
        """FLOPs a second of a few steps with all layers here, for a few seconds; by the largest batch in them."""
        train, layers = self.recipe.train, tuple(range(self.stack.num_layers))
        kind, encoder = self._costs.kind, self._costs.encoder
        planner = self._costs.planner(train, layers)
        loaded = self._costs.task.load(self.recipe.seed)
        stack = find_stack(loaded.model, self.recipe.select.tower)
        ordered = sorted(self.examples, key=len)
        middle = max(0, (len(ordered) - train.batch_size) // 2)
        some, device = ordered[middle : middle + train.batch_size], loaded.model.device
        with reporter.stage(f"timing steps for at most {MOST_SECONDS:g} s", 1, "measurement") as progress:
            adapted = store.adapt(
                loaded.model, stack, layers, planner.config, with_head=kind in ("classification", "regression")
            )
            loss = own_loss(adapted, kind, train, seq2seq=encoder.seq2seq)
            sizes = sorted({min(2**power, len(some)) for power in range(train.batch_size.bit_length() + 1)})
            batches = [batch for size in sizes for batch in batches_of(some[-size:], size, loaded.pad_id, kind, device)]
            own = (lambda model, batch: model(**batch).loss) if loss is None else loss
            place, seconds = seconds_a_step(adapted, batches, own)
            progress(1)
        timed = some[-sizes[place] :]
        if len(timed) < len(some):
            reporter.say(f"times are upper bounds: steps of {len(timed)} rows were timed, as {len(some)} are slow here")
        size = replace(mean_size(timed, kind, train), tokens=len(timed[-1]), checkpointing=False)
        return planner.step(layers, size).flops / seconds


MEASURES: dict[str, Callable[[Priced], float]] = {
    "memory": lambda one: one.memory_bytes,
    "time": lambda one: one.flops,
    "parameters": lambda one: one.parameters,
    "size on disk": lambda one: one.adapter_bytes,
}


def _told(what: str, value: float) -> str:
    if what == "time":
        return f"{value:.2f} of all layers'"
    return f"{value:,.0f}" if what == "parameters" else tell_bytes(value)


def _misses(one: Priced, limits: Limits) -> list[str]:
    """What a training takes too much of."""
    misses = []
    if (most := limits.memory_bytes) is not None and one.memory.needed > most:
        misses.append(f"memory: {one.memory.needed / most:.2f} of what there is")
    if (share := limits.share) is not None and one.flops > share * (1 + 1e-9):
        misses.append(f"time: {one.flops:.2f} of all layers', {share:g} allowed")
    if (seconds := limits.seconds) is not None and one.seconds > seconds:
        misses.append(f"time: {one.seconds / seconds:.2f} of what there is")
    if (count := limits.parameters) is not None and one.parameters > count:
        misses.append(f"parameters: {one.parameters / count:.2f} of those allowed")
    if (size := limits.adapter_bytes) is not None and one.adapter_bytes > size:
        misses.append(f"size on disk: {one.adapter_bytes / size:.2f} of what is allowed")
    return misses
