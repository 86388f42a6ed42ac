"""DeepSpeed's ZeRO 3 in two processes with the callback: the weights of the same training without it."""

import pytest
import torch

from apart import installed_apart
from pair import run_pair
from prefixed import adapted

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import deepspeed
import torch
import transformers
from layersift import FrozenPrefix
from layersift.models.stacks import find_stack
from prefixed import adapted, batch

model = adapted()
base = model.get_base_model()
backward = [0, 0, 0, 0]

def counted(layer):
    def count(*given):
        backward[layer] += 1
    return count

for layer, block in enumerate(find_stack(base).blocks(base)):
    block.register_full_backward_hook(counted(layer))
rows = [{name: values[row] for name, values in batch(i).items()} for i in range(4) for row in range(3)]
arguments = transformers.TrainingArguments(
    "out", max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", seed=0,
    gradient_checkpointing=True, ddp_backend="gloo", learning_rate=1e-2,
    deepspeed={
        "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3},
        "zero_force_ds_cpu_optimizer": False, "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
    },
)
callbacks = [FrozenPrefix()] if PREFIX else []
transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
with deepspeed.zero.GatheredParameters(list(trained.values())):
    found = {name: parameter.detach().tolist() for name, parameter in trained.items()}
print(flush=True)
print(json.dumps({"weights": found, "backward": backward}), flush=True)
"""


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory):
    """A directory with DeepSpeed, built without flops of its own; they are compiled when they are asked for."""
    place = tmp_path_factory.getbasetemp() / "deepspeed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_BUILD_OPS", "0")
        installed_apart(place, ["deepspeed"], "--no-deps", "--no-build-isolation")
    needed = ["hjson", "msgpack", "ninja", "py-cpuinfo", "pydantic", "einops"]
    installed_apart(place.with_name("deepspeed-needs"), needed)
    return f"{place}:{place.with_name('deepspeed-needs')}"


def test_two_processes_train_as_without_the_callback(deepspeed, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", deepspeed)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with_it, without = (run_pair(f"PREFIX = {on}\n{SCRIPT}", tmp_path) for on in (True, False))
    for ours, theirs in zip(with_it, without, strict=True):
        assert ours["backward"] == [0, 0, 2, 2]
        assert theirs["backward"] == [2, 2, 2, 2]
        for name, values in theirs["weights"].items():
            assert torch.allclose(torch.tensor(ours["weights"][name]), torch.tensor(values), atol=1e-7), name
        before = {name: p for name, p in adapted().named_parameters() if p.requires_grad}
        assert ours["weights"].keys() == before.keys()
        assert not any(torch.allclose(torch.tensor(ours["weights"][name]), p) for name, p in before.items())
