"""What `layersift inspect` says of a model: its blocks, what would be adapted, what a step costs, what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from layersift.adapt.methods import adapter_config
from layersift.adapt.targets import adapted_modules, trained_by_layer
from layersift.config.limits import Device, Devices, trained_kind
from layersift.config.recipe import ModelSource
from layersift.config.train import STATIC, TrainSettings, parse_strategy
from layersift.data.encode import mark_trained
from layersift.errors import AdapterError
from layersift.models.load import base_bytes, empty_model
from layersift.models.stacks import find_stack, find_stacks
from layersift.plan.devices import memory_of_device
from layersift.plan.memory import Memory, tell_bytes, unit_of_bytes
from layersift.plan.planner import MeasuredModel, Plan, Planner
from layersift.plan.training import Length, StepSize, image_shape
from layersift.records.selection import Selection
from layersift.task import Task

if TYPE_CHECKING:
    from peft import PeftConfig

STEPS = 240  # of a training by a strategy, whose mean step is told
STACKS = ["blocks", "tower", "layers", "class", "adapted in each", "LoRA parameters, all layers"]
PARTS = ("base", "adapters", "gradients", "optimizer", "activations")
OF_SEVERAL = ("gathered", "buckets")  # components where several devices share a training
ALONE = "all, one device"
COSTS = ["layers", "FLOPs a step", "memory above the model", "trained parameters"]


@dataclass(frozen=True)
class Costs:
    """What a training step takes on several choices of layers."""

    base: str  # what the loaded model takes, in words
    step: str  # on what a step is counted, in words
    choices: list[dict[str, Any]]
    memory: dict[str, Memory]  # of each choice
    verdict: str = ""  # whether it fits, and what would
    kind: str = "float32"  # the type that products are computed in on a GPU

    def table(self) -> list[list[str]]:
        """A row a choice, each cost with its ratio to all layers'."""
        whole = self.choices[0]
        return [
            COSTS,
            *(
                [
                    choice["name"],
                    f"{choice['flops'] / 1e9:,.1f} GFLOP ({choice['flops'] / whole['flops']:.2f})",
                    f"{choice['memory_bytes'] / 2**20:,.1f} MiB ({choice['memory_bytes'] / whole['memory_bytes']:.2f})",
                    f"{choice['parameters']:,} ({choice['parameters'] / whole['parameters']:.2f})",
                ]
                for choice in self.choices
            ),
        ]

    def memory_table(self, device: Device | None) -> list[list[str]]:
        """A column a choice: the components of its memory, the plan's range, and a step's estimated time."""
        size, unit = unit_of_bytes(max(one.high for one in self.memory.values()))
        told = {
            name: {what: f"{n / size:,.3g}" for what, n in of.to_json().items()} for name, of in self.memory.items()
        }
        rows = [[f"memory, {unit}", *told]]
        several = [what for what in OF_SEVERAL if any(what in of for of in told.values())]
        ends = ("expected", "margin", "low", "high")
        rows += [[what, *(of.get(what, "-") for of in told.values())] for what in (*PARTS, *several, *ends)]
        if device is not None:
            seconds = {choice["name"]: choice["flops"] / device.pace(self.kind) for choice in self.choices}
            rows.append(["a step, estimated", *(f"{1000 * seconds[name]:,.3g} ms" for name in self.memory)])
        return rows


def describe_stacks(model: Any, adapter: PeftConfig | None) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Every stack of blocks of a model without weights, with what an adapter trains there: as values, and as a table.

    Raises:
        ModelError: the model has no blocks.
        AdapterError: the adapter fits none of the stacks.
    """
    values, rows = [], [STACKS]
    refused: AdapterError | None = None
    for stack in find_stacks(model):
        layers = range(stack.num_layers)
        try:
            names = adapted_modules(model, stack, layers, adapter)
            parameters = sum(trained_by_layer(model, stack, layers, adapter) or [])
        except AdapterError as error:  # a vision tower, say, that has none of the targets
            names, parameters, refused = (), 0, error
        leaves = list(dict.fromkeys(n.removeprefix(f"{stack.path}.").partition(".")[2] for n in names))
        values.append(asdict(stack) | {"adapted": leaves, "lora_parameters": parameters})
        classes = ", ".join(dict.fromkeys(stack.block_classes))
        rows.append([stack.pattern, stack.tower, str(stack.num_layers), classes, ", ".join(leaves), f"{parameters:,}"])
    if refused is not None and not any(value["adapted"] for value in values):
        raise refused
    return values, rows


def describe_selection(model: Any, selection: Selection, adapter: PeftConfig) -> dict[str, Any]:
    """What a selection adapts of a model without weights.

    Raises:
        SelectionError, AdapterError: it does not fit the model.
    """
    stack, config = selection.stack(model), selection.config_for(model, adapter)
    names = adapted_modules(model, stack, selection.selected_layers, config)
    parameters = sum(trained_by_layer(model, stack, selection.selected_layers, config) or [])
    return {"mask": selection.mask, "modules": list(names), "lora_parameters": parameters}


def cost_of_choices(
    model: ModelSource,
    selection: Selection | None,
    trained: TrainSettings,
    size: StepSize,
    most: int | None = None,
    devices: Devices = Devices(),  # noqa: B008
) -> Costs:
    """What a step takes on all layers, on either half, and on a selection; by a strategy also its mean step.

    Args:
        size: of the step, with the kind of task that the model's head is for.
        most: bytes that there are; None: nobody asks whether it fits.
        devices: that share the step, which :meth:`Devices.require` has allowed: costs are of each of them, and one more
            choice is all layers on one alone.

    Raises:
        LayersiftError: the selection or the adapters do not fit the model.
    """
    whole_step, size = size, replace(size, batch_size=devices.rows_each(size.batch_size))
    empty = empty_model(model, size.kind)
    stack = selection.stack(empty) if selection is not None else find_stack(empty)
    layers, half = stack.num_layers, max(1, stack.num_layers // 2)
    halves: dict[str, Sequence[int]] = {"last half": range(layers - half, layers), "first half": range(half)}
    choices = {name: tuple(those) for name, those in ({"all": range(layers)} | halves).items()}
    lora, measured = adapter_config(trained, size.kind, 1), MeasuredModel(empty, stack)
    planners = dict.fromkeys(choices, Planner(empty, stack, lora, measured))
    if selection is not None:
        choices["selected"] = selection.selected_layers
        config = selection.config_for(empty, lora) if lora is not None else None
        planners["selected"] = Planner(empty, stack, config, measured)
    plans = {name: planners[name].step(those, size) for name, those in choices.items()}
    base = base_bytes(empty, model.quantization)

    def held(plan: Plan, base: int = base) -> Memory:
        return memory_of_device(base, plan, empty, stack, devices)

    memory = {name: held(plan) for name, plan in plans.items()}
    costs = [_cost(name, plan, memory[name]) for name, plan in plans.items()]
    if trained.strategy != STATIC:
        name = "selected" if "selected" in choices else "all"
        strategy, planner, those = parse_strategy(trained.strategy), planners[name], choices[name]
        peak = planner.heaviest_step(those, size, strategy)
        most_held = held(peak)
        same = {
            "layers": those,
            "memory_bytes": most_held.expected - most_held.base,
            "parameters": plans[name].parameters,
        }
        for kept in (False, True) if trained.num_epochs > 1 else (False,):
            flops = planner.training(those, size, strategy, Length(STEPS, trained.num_epochs, kept)).flops / STEPS
            costs.append({"name": trained.strategy + (", states kept" if kept else ""), "flops": flops} | same)
            memory[costs[-1]["name"]] = most_held
    verdict = ""
    if most is not None:
        verdict = _verdict(memory, most, [*_remedies(model, empty, planners, choices, size, devices, held)])
    if devices.count > 1:
        alone = planners["all"].step(choices["all"], whole_step)
        memory[ALONE] = Memory.of(base, alone)
        costs.append(_cost(ALONE, alone, memory[ALONE]))
    for choice in costs:
        choice["memory"] = memory[choice["name"]].to_json()
    width = next(empty.parameters()).element_size()
    image = image_shape(empty)
    each = f"{size.tokens} tokens" if image is None else " x ".join(map(str, image)) + " numbers"
    shared = f", {size.batch_size} on each of {devices.described()}" if devices.count > 1 else ""
    return Costs(
        f"The loaded base: {base / 2**20:,.1f} MiB ({model.quantization or f'{8 * width} bits a number'}).",
        f"One step on {whole_step.batch_size} samples of {each} ({size.kind}){shared}:",
        costs,
        memory,
        verdict,
        trained_kind(trained.precision, width, model.quantization is not None),
    )


def _cost(name: str, plan: Plan, memory: Memory) -> dict[str, Any]:
    """A choice's plan as JSON values, its bytes as a device holds them."""
    states = {"adapter_bytes": memory.adapters, "gradient_bytes": memory.gradients, "optimizer_bytes": memory.optimizer}
    sums = {"state_bytes": sum(states.values()), "memory_bytes": memory.expected - memory.base}
    return {"name": name} | asdict(plan) | states | sums


def _remedies(
    model: ModelSource,
    empty: Any,
    planners: dict[str, Planner],
    choices: dict[str, tuple[int, ...]],
    size: StepSize,
    devices: Devices,
    held: Callable[..., Memory],
) -> Iterator[tuple[str, Memory]]:
    """What would make a step smaller, and what it then takes: of the selection, else of all layers.

    Args:
        size: of one device's part.
        held: what a device holds by a plan and by the bytes of the base.
    """
    name = "selected" if "selected" in choices else "all"
    base = base_bytes(empty, model.quantization)

    def step(size: StepSize, base: int = base) -> Memory:
        return held(planners[name].step(choices[name], size), base)

    less = size.batch_size
    while less > 1:
        less //= 2
        yield f"--batch-size {less * devices.count}", step(replace(size, batch_size=less))
    if not size.checkpointing:
        yield "--gradient-checkpointing", step(replace(size, checkpointing=True))
    if model.quantization is None and not devices.cuts_weights:
        yield "--quantization 4bit", step(size, base_bytes(empty, "4bit"))


def _verdict(memory: dict[str, Memory], most: int, remedies: list[tuple[str, Memory]]) -> str:
    """Whether a step fits, by how much not, and what of less would."""
    name = "selected" if "selected" in memory else "all"
    high = memory[name].high
    if high <= most:
        return f"{name}: it will fit, with {tell_bytes(most - high)} to spare."
    would = {other: of.high for other, of in memory.items() if other != name and of.high <= most}
    fewer = [(flag, of.high) for flag, of in remedies if of.high <= most]
    would |= dict([one for one in fewer if one[0].startswith("--batch")][:1])
    would |= dict(one for one in fewer if not one[0].startswith("--batch"))
    listed = ", ".join(f"{what} ({tell_bytes(taken)})" for what, taken in would.items())
    missed = f"{name}: it will not fit, by {tell_bytes(high - most)}"
    return f"{missed}; these would: {listed}." if would else f"{missed}; nor would less of any one thing."


def write_out_sample(task: Task, index: int) -> str:
    """A row as the model reads it, with the tokens that bear the loss marked.

    Raises:
        LayersiftError: the tokenizer or the row cannot be read.
    """
    encoder = task.encoder
    example, cut = encoder.encode(task.table, index)
    if example is None:
        return f"left out: the prompt alone fills {encoder.limit()} tokens"
    return mark_trained(example, encoder) + (f"\n(cut to {encoder.limit()} tokens)" if cut else "")
