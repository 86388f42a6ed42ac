"""Training in two processes with the frozen prefix: the gradients of one process that sees both batches."""

import pytest
import torch

from layersift.step.prefix import frozen_prefix
from pair import run_pair
from prefixed import adapted, batch, gradients

SCRIPT = """
import json
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from layersift.step.prefix import frozen_prefix
from prefixed import adapted, batch, gradients, runs

distributed.init_process_group("gloo")
rank = distributed.get_rank()
model = adapted(checkpointing=CHECKPOINTING)
wrapped = DistributedDataParallel(model)
with frozen_prefix(wrapped):
    forward, backward = runs(model, lambda: gradients(wrapped, batch(rank)))
found = {name: p.grad.tolist() for name, p in model.named_parameters() if p.grad is not None}
print(json.dumps({"gradients": found, "backward": backward}), flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}])
@pytest.mark.slow
def test_two_processes_have_the_mean_of_both_gradients(checkpointing, tmp_path):
    found = run_pair(f"CHECKPOINTING = {checkpointing!r}\n{SCRIPT}", tmp_path)
    model = adapted()
    with frozen_prefix(model):
        alone = [gradients(model, batch(rank)) for rank in (0, 1)]
    for one in found:
        assert one["backward"] == [False, False, True, True]
        assert one["gradients"].keys() == alone[0].keys()
        for name, values in one["gradients"].items():
            assert torch.allclose(torch.tensor(values), (alone[0][name] + alone[1][name]) / 2, atol=1e-6), name


SHARDED = """
import json
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from layersift.models.stacks import find_stack
from layersift.step.prefix import frozen_prefix
from prefixed import adapted, batch, gradients, runs

distributed.init_process_group("gloo")
rank = distributed.get_rank()
model = adapted(checkpointing=CHECKPOINTING)
mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
base = model.get_base_model()
for block in find_stack(base).blocks(base):
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
backward = []
with frozen_prefix(model):
    for step in range(2):
        _, reached = runs(model, lambda: gradients(model, batch(2 * step + rank)))
        backward.append(reached)
        optimizer.step()
found = {n: p.full_tensor().tolist() for n, p in model.named_parameters() if p.requires_grad}
print(json.dumps({"weights": found, "backward": backward}), flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}])
def test_two_processes_that_share_the_parameters_train_as_one_does(checkpointing, tmp_path):
    """FSDP 2: after two steps the weights are those of one process that sees both batches."""
    found = run_pair(f"CHECKPOINTING = {checkpointing!r}\n{SHARDED}", tmp_path)
    model = adapted()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    with frozen_prefix(model):
        for step in range(2):
            alone = [gradients(model, batch(2 * step + rank)) for rank in (0, 1)]
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter -= 0.1 * (alone[0][name] + alone[1][name]) / 2
    for one in found:
        assert one["backward"] == [[False, False, True, True]] * 2
        assert one["weights"].keys() == trained.keys()
        for name, values in one["weights"].items():
            assert torch.allclose(torch.tensor(values), trained[name], atol=1e-5), name
            assert not torch.equal(trained[name], before[name])
