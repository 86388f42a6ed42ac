"""The training variants that `layersift advise` weighs: in which order, with which risk, on what evidence;
and what each takes within limits.

The order for a kind of task is one table, :data:`CLASSIFICATION` or :data:`WRITING`. What was measured is read from
evidence.json, which ``benchmarks/advice_evidence.py`` writes; the screen, the file and docs/advise.md say the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from layersift.adapt import store
from layersift.adapt.methods import alpha_at_rank, has_rank, scales_by_root
from layersift.config.defaults import Trained, with_defaults
from layersift.config.fields import read_as
from layersift.config.limits import Devices, Limits
from layersift.config.quantities import mask_of
from layersift.config.recipe import Recipe, TaskKind
from layersift.config.train import STATIC, TrainSettings, parse_strategy
from layersift.data.examples import Example, batches_of
from layersift.experiment.costs import Costs, least_changed, mean_size
from layersift.experiment.prepare import Prepared
from layersift.models.load import base_bytes
from layersift.models.stacks import find_stack
from layersift.plan.devices import memory_of_device
from layersift.plan.memory import Memory, tell_bytes
from layersift.plan.training import TrainingPlan
from layersift.progress import Reporter
from layersift.records.runs import Variant
from layersift.step.counters import MOST_SECONDS, seconds_a_step
from layersift.step.losses import own_loss

ALL, LOWER_RANK, FREEZING = "all layers", "lower rank", "progressive freezing"
THREE_QUARTERS, HALF, THIRD, LAST = "last three quarters", "last half", "last third", "last layer"
HALF_LOWER_RANK, SHORTER = "last half, lower rank", "fewer epochs"
ALWAYS, SHORT_OF_PARAMETERS, SHORT_OF_TIME = "always", "parameters or disk are short", "time is short"
RANK_DIVISORS = (2, 4, 8)


OLDER = "docs/results/older-tables.md"


@dataclass(frozen=True)
class Evidence:
    """The score of a kind of variant minus that of all layers, over tasks and seeds."""

    value: float  # a fraction of the rows; nats a token
    low: float
    high: float
    worst: float  # of one task
    tasks: int
    seeds: int
    page: str


@dataclass(frozen=True)
class Kind:
    """A kind of training variant, and what our own trainings say of it."""

    name: str
    condition: str  # when it is weighed
    risk: str  # at most 12 words
    evidence: str  # a page
    measured: Evidence | None = None


def _read_evidence() -> dict[str, dict[str, Evidence]]:
    """What ``benchmarks/advice_evidence.py`` wrote, by kind of task and of variant."""
    values = json.loads(resources.files("layersift.advise").joinpath("evidence.json").read_text(encoding="utf-8"))
    return {
        task: {kind: read_as(Evidence, one, f"evidence.json, {kind}") for kind, one in values[task].items()}
        for task in ("classification", "writing")
    }


MEASURED = _read_evidence()
HALF_PAGE, RATES_PAGE = "docs/results/half.md", "docs/learning-rates.md"


def _measured(task: str, name: str, condition: str) -> Kind:
    """A kind with what was measured of it."""
    of = MEASURED[task].get(name)
    if of is None:
        return Kind(name, condition, "not measured on three tasks at its own rate", RATES_PAGE)
    over = f"{of.tasks} task{'s' * (of.tasks > 1)}"
    if task == "classification":
        value, low, high = (f"{100 * edge:+.1f}" for edge in (of.value, of.low, of.high))
        return Kind(name, condition, f"{value} points vs all layers ({low} to {high}, {over})", of.page, of)
    value, low, high = (f"{edge:+.3f}" for edge in (of.value, of.low, of.high))
    return Kind(name, condition, f"loss {value} vs all layers ({low} to {high}, {over})", of.page, of)


# In the order in which they are advised where nothing has been tried on the user's rows.
CLASSIFICATION = (
    Kind(ALL, ALWAYS, "none known: every layer is trained", HALF_PAGE),
    _measured("classification", LOWER_RANK, SHORT_OF_PARAMETERS),
    _measured("classification", HALF, ALWAYS),
    Kind(THIRD, ALWAYS, "not measured with several seeds", RATES_PAGE),
    _measured("classification", FREEZING, ALWAYS),
    Kind(HALF_LOWER_RANK, SHORT_OF_PARAMETERS, "not measured: fewer layers and smaller adapters", HALF_PAGE),
    Kind(LAST, ALWAYS, "most layers stay as they are; expect to lose points", HALF_PAGE),
    Kind(SHORTER, SHORT_OF_TIME, "not known whether so short a training converges", OLDER),
)
WRITING = (
    Kind(ALL, ALWAYS, "none known: every layer is trained", HALF_PAGE),
    _measured("writing", LOWER_RANK, SHORT_OF_PARAMETERS),
    _measured("writing", FREEZING, ALWAYS),
    Kind(THREE_QUARTERS, ALWAYS, "loses less than the last half", HALF_PAGE),
    _measured("writing", HALF, ALWAYS),
    Kind(THIRD, ALWAYS, "expect to lose more than the last half does", HALF_PAGE),
    Kind(HALF_LOWER_RANK, SHORT_OF_PARAMETERS, "not measured: fewer layers and smaller adapters", HALF_PAGE),
    Kind(LAST, ALWAYS, "most layers stay as they are; expect to lose", HALF_PAGE),
    Kind(SHORTER, SHORT_OF_TIME, "not known whether so short a training converges", OLDER),
)
ORDER: dict[TaskKind, tuple[Kind, ...]] = {
    "classification": CLASSIFICATION,
    "regression": CLASSIFICATION,
    "instruction": WRITING,
    "text": WRITING,
}
PARTS = {THREE_QUARTERS: 3 / 4, HALF: 1 / 2, THIRD: 1 / 3}  # of the layers


@dataclass(frozen=True)
class Situation:
    """What the variants depend on beside the settings that were asked for."""

    task: TaskKind
    width: int  # of the model's hidden states
    num_layers: int
    learning_rate: float | None = None  # as asked for; None: each variant has its own default

    @property
    def order(self) -> tuple[Kind, ...]:
        """The table for this kind of task."""
        return ORDER[self.task]

    def place(self, kind: str) -> int:
        """Where a kind stands in that table."""
        return [one.name for one in self.order].index(kind)

    def kind(self, name: str) -> Kind:
        """The row of a kind."""
        return self.order[self.place(name)]

    def variant(self, name: str, kind: str, layers: Sequence[int], settings: TrainSettings) -> Variant:
        """A variant with every setting named, at its own default rate where none was asked for.

        Where blocks below the first trained one are frozen they draw no dropout, so that their outputs can be kept.
        """
        settings = replace(settings, learning_rate=self.learning_rate)
        if freezes_prefix(layers, settings):
            settings = replace(settings, prefix_dropout=False)
        named = with_defaults(settings, Trained(self.task, self.width, len(layers), self.num_layers))
        return Variant(name, mask_of(layers, self.num_layers), named, kind)


def freezes_prefix(layers: Sequence[int], settings: TrainSettings) -> bool:
    """Whether blocks below the first trained one are frozen for good, from the start or later."""
    return layers[0] > 0 or parse_strategy(settings.strategy).freezes


def list_variants(situation: Situation, train: TrainSettings, limits: Limits) -> list[Variant]:
    """The variants that may be advised within some limits, in their order; no layers twice at the same settings.

    Args:
        train: what was asked for, with named target modules.
    """
    short = limits.parameters is not None or limits.adapter_bytes is not None
    weighed = [
        kind.name
        for kind in situation.order
        if kind.condition == ALWAYS or (short and kind.condition == SHORT_OF_PARAMETERS)
    ]
    variants: dict[tuple[str, TrainSettings], Variant] = {}
    for kind in weighed:
        for one in _MAKERS[kind](situation, train):
            variants.setdefault((one.mask, one.train), one)
    return list(variants.values())


def shorten(situation: Situation, variant: Variant, fraction: float, samples: int) -> Variant | None:
    """The variant for a fraction of its steps; None where that is not one."""
    settings = variant.train
    epoch = replace(settings, epochs=1.0).steps(samples)
    steps = int(settings.steps(samples) * fraction)
    if not steps:
        return None
    settings = replace(settings, epochs=steps / epoch)
    return situation.variant(f"{variant.name} for {steps / epoch:.3g} epochs", SHORTER, variant.layers, settings)


def list_spare(situation: Situation, variant: Variant) -> dict[str, list[Variant]]:
    """What a training may be given beside where there is room, the most of each first: modules, ranks, epochs."""
    settings = variant.train
    by_root = scales_by_root(settings.method, settings.method_options)
    more: dict[str, dict[str, TrainSettings]] = {"modules": {}, "rank": {}, "epochs": {}}
    if settings.target_modules not in (None, "all-linear") and not settings.ranks:
        more["modules"]["all-linear modules"] = replace(settings, target_modules="all-linear")
    for times in (4, 2) if _has_one_rank(settings) else ():
        rank = settings.rank * times
        alpha = alpha_at_rank(settings.alpha, settings.rank, rank, by_root)
        more["rank"][f"rank {rank}"] = replace(settings, rank=rank, alpha=alpha)
    for times in (3, 2):
        more["epochs"][f"{settings.num_epochs * times:g} epochs"] = replace(
            settings, epochs=settings.num_epochs * times
        )
    return {
        what: [situation.variant(name, variant.kind, variant.layers, given) for name, given in settings_by_name.items()]
        for what, settings_by_name in more.items()
    }


def _lower_ranks(train: TrainSettings) -> list[TrainSettings]:
    """Half the rank, a quarter, an eighth, with the same scale (alpha / rank)."""
    if not _has_one_rank(train):
        return []
    ranks = [train.rank // divisor for divisor in RANK_DIVISORS if train.rank // divisor >= 1]
    by_root = scales_by_root(train.method, train.method_options)
    alphas = {rank: alpha_at_rank(train.alpha, train.rank, rank, by_root) for rank in ranks}
    return [replace(train, rank=rank, alpha=alpha) for rank, alpha in alphas.items()]


def _has_one_rank(train: TrainSettings) -> bool:
    return has_rank(train.method) and not train.ranks and "r" not in train.method_options


def _all(situation: Situation, train: TrainSettings) -> list[Variant]:
    return [situation.variant("all layers", ALL, range(situation.num_layers), train)]


def _ranks(situation: Situation, train: TrainSettings) -> list[Variant]:
    layers = range(situation.num_layers)
    return [situation.variant(f"all layers at rank {s.rank}", LOWER_RANK, layers, s) for s in _lower_ranks(train)]


def _freezing(situation: Situation, train: TrainSettings) -> list[Variant]:
    if situation.num_layers < 3 or train.method == "adalora" or train.strategy != STATIC:
        return []
    settings = replace(train, strategy="freezing")
    return [situation.variant("progressive freezing", FREEZING, range(situation.num_layers), settings)]


def _last(kind: str) -> Callable[[Situation, TrainSettings], list[Variant]]:
    def made(situation: Situation, train: TrainSettings) -> list[Variant]:
        count = max(1, round(PARTS[kind] * situation.num_layers)) if kind in PARTS else 1
        if count == situation.num_layers:
            return []
        layers = range(situation.num_layers - count, situation.num_layers)
        name = (
            f"last {count} of {situation.num_layers} layers" if count > 1 else f"last layer of {situation.num_layers}"
        )
        return [situation.variant(name, kind, layers, train)]

    return made


def _last_at_half_the_rank(situation: Situation, train: TrainSettings) -> list[Variant]:
    return [
        replace(half, name=f"{half.name} at rank {settings.rank}", kind=HALF_LOWER_RANK)
        for settings in _lower_ranks(train)[:1]
        for half in _last(HALF)(situation, settings)
    ]


_MAKERS: dict[str, Callable[[Situation, TrainSettings], list[Variant]]] = {
    ALL: _all,
    LOWER_RANK: _ranks,
    FREEZING: _freezing,
    **{kind: _last(kind) for kind in (*PARTS, LAST)},
    HALF_LOWER_RANK: _last_at_half_the_rank,
}


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
    """What trainings on a recipe's rows take.

    Args:
        devices: that share each batch; memory is that of one of them.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, devices: Devices = Devices()) -> None:  # noqa: B008
        self.recipe, self.devices, self._costs = recipe, devices, Costs(recipe, prepared)
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

        return least_changed(variant.train, fits, self.devices.count)

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
        if self.recipe.model.quantization is None and not self.devices.cuts_weights:
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
        own = replace(settings, batch_size=self.devices.rows_each(settings.batch_size))
        plan = self._costs.heaviest_step(variant.layers, own, tokens)
        return memory_of_device(self.base, plan, self.model, self.stack, self.devices)

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
