"""What each of several devices holds, by the plan, against what two processes really held."""

import pytest

from layersift.config.limits import Devices
from layersift.errors import LayersiftError
from layersift.models.stacks import find_stack
from layersift.plan.devices import memory_of_device
from layersift.plan.memory import Memory
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from pair import run_pair
from prefixed import LORA
from tiny import tiny

HELD = """
import json, sys, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from layersift.models.stacks import find_stack
from layersift.training.sharding import is_shard, shard_blocks
from prefixed import adapted

distributed.init_process_group("gloo")
model = adapted("llama", (1, 3))
stack = find_stack(model.get_base_model())
if WAY == "fsdp":
    shard_blocks(model, stack, torch.device("cpu"))
trained = [p for p in model.parameters() if p.requires_grad]
frozen = [p for p in model.parameters() if not p.requires_grad]
several = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(trained, foreach=False)
ids = torch.arange(8).reshape(2, 4)
several(input_ids=ids, labels=ids).loss.backward()
optimizer.step()

def storage(tensors):
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())

moments = [of[name] for of in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
held = {"base": storage(frozen), "adapters": storage(trained), "gradients": storage(p.grad for p in trained)}
print(json.dumps(held | {"optimizer": storage(moments)}), flush=True)
distributed.destroy_process_group()
"""


def memory(devices):
    model = tiny("llama")
    stack = find_stack(model)
    plan = Planner(model, stack, LORA).step((1, 3), StepSize("instruction", 1, 4))
    base = sum(p.numel() * p.element_size() for p in model.parameters())
    return memory_of_device(base, plan, model, stack, devices), Memory.of(base, plan)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_processes_hold_what_the_plan_says(way, tmp_path):
    each, _ = memory(Devices(2, way))
    planned = {name: getattr(each, name) for name in ("base", "adapters", "gradients", "optimizer")}
    for held in run_pair(f"WAY = {way!r}" + HELD, tmp_path):
        assert held == planned


@pytest.mark.parametrize("sharding", [None, "none", "ddp"])
def test_without_shards_each_device_holds_all_and_copies_gradients_to_send_them(sharding):
    each, alone = memory(Devices(4, sharding))
    assert {**vars(each), "buckets": 0} == vars(alone)
    assert each.buckets == each.gradients > 0


def test_zero_3_cuts_everything_but_what_is_small():
    """All parameters of a tiny model are below DeepSpeed's threshold: each device keeps them, and its part of them."""
    each, alone = memory(Devices(4, "zero3"))
    assert each.base == alone.base + -(-alone.base // 4)
    assert (each.gradients, each.optimizer) == (-(-alone.gradients // 4), -(-alone.optimizer // 4))
    assert each.gathered == 0


def test_one_device_shares_nothing():
    for sharding in ("none", "ddp", "fsdp", "zero3"):
        each, alone = memory(Devices(1, sharding))
        assert each == alone
        assert set(each.components()) == {"base", "adapters", "gradients", "optimizer", "activations", "margin"}


def test_rows_are_shared_evenly_or_not_at_all():
    assert Devices(4).rows_each(8) == 2
    with pytest.raises(LayersiftError, match="multiple of 3"):
        Devices(3).rows_each(8)
