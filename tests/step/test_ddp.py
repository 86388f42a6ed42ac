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
