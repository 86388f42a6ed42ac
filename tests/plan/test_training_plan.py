"""What a training by a strategy is planned to take, against what one then takes."""

from dataclasses import replace

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from layersift.adapt.methods import adapter_config
from layersift.adapt.targets import trained_by_layer
from layersift.config.train import TrainSettings, parse_strategy
from layersift.errors import SelectionError
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import Length, StepSize, TrainingPlan
from tiny import selection_of, tiny
from training import Setting

SIZE = StepSize("instruction", 4, 32)
SETTINGS = TrainSettings(epochs=4, learning_rate=1e-3, batch_size=4, target_modules="all-linear")
ROWS = [
    {"prompt": " ".join(f"w{(i + j) % 40}" for j in range(16)), "response": " ".join(f"w{j}" for j in range(15))}
    for i in range(16)
]


class Products(TorchDispatchMode):
    """Counts operations; torch's own counter hooks modules, too, which does not bear gradients taken by chunks."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=output)
        return output


def counted(directory, output, settings, layers):
    """Operations of the products that a training takes, from its first step to its last."""
    setting = Setting(directory, "instruction", ROWS)
    setting.loaded.model.config._attn_implementation = "eager"
    setting.selection = selection_of(setting.loaded.model, layers)
    assert len({len(example) for example in setting.examples}) == 1
    with Products() as products:
        setting.train(output, settings)
    return products.total


@pytest.fixture(scope="module")
def shared(llama_directory):
    """A planner, which measures each kind of block once, and an example of those that are trained on."""
    setting = Setting(llama_directory, "instruction", ROWS)
    model = setting.loaded.model
    return Planner(model, find_stack(model), adapter_config(SETTINGS, "instruction", 16)), setting.examples[0]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("strategy", "layers"),
    [
        ("static", range(4)),
        ("static", (2, 3)),
        ("freezing", range(4)),
        ("freezing:1@0.125,2@0.375,3@0.65", range(4)),
        ("rotating:1@2", range(4)),
        ("skipping:0.6", (0, 3)),
        ("skipping:0.6", (1, 3)),
    ],
)
def test_a_plan_is_within_a_tenth_of_what_is_counted(strategy, layers, kept, shared, llama_directory, tmp_path):
    settings = replace(SETTINGS, strategy=strategy, activation_cache="auto" if kept else "off")
    taken = counted(llama_directory, tmp_path / "run", settings, tuple(layers))
    planner, example = shared
    size = StepSize("instruction", 4, len(example), response_share=sum(example.response) / len(example))
    found = planner.training(layers, size, parse_strategy(strategy), Length(16, 4, kept))
    assert found.flops == pytest.approx(taken, rel=0.1)


def planner():
    model = tiny("llama")
    config = adapter_config(SETTINGS, "instruction", 40)
    return Planner(model, find_stack(model), config)


def plan_of(strategy, steps=40, **length):
    return planner().training(range(4), SIZE, parse_strategy(strategy), Length(steps, **length))


def peak_of(strategy):
    return planner().heaviest_step(range(4), SIZE, parse_strategy(strategy)).memory_bytes


def test_what_costs_less_is_planned_to_cost_less():
    static, freezing, early, rotating = map(plan_of, ("static", "freezing", "freezing:3@0.1", "rotating:1@1"))
    assert early.flops < freezing.flops < static.flops
    assert rotating.flops < static.flops
    kept = plan_of("freezing", epochs=5, kept=True)
    assert kept.flops < plan_of("freezing", epochs=5).flops == pytest.approx(freezing.flops)
    assert plan_of("static", epochs=5, kept=True) == static
    assert plan_of("static", steps=80).flops == pytest.approx(2 * static.flops)
    assert isinstance(static, TrainingPlan)


def test_a_rising_cut_begins_with_all_layers_and_a_draw_takes_what_its_layers_and_the_resting_ones_keep():
    given = planner()
    static, freezing, one, two = map(peak_of, ("static", "freezing", "rotating:1@1", "rotating:2@1"))
    alone = given.heaviest_step((0,), SIZE, parse_strategy("static")).memory_bytes
    assert freezing == static
    assert alone < one < two < static
    weights = trained_by_layer(tiny("llama"), given.stack, range(4), given.config)
    assert sum(weights[1:]) * 4 * 3 <= one - alone  # three layers rest: weights and two moments, no gradients


def test_layers_that_the_strategy_cannot_be_followed_on_are_refused():
    for wanted in (plan_of, peak_of):
        with pytest.raises(SelectionError, match="5 layers at a time, but only 4"):
            wanted("rotating:5@1")
