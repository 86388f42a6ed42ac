"""One training in several processes under torchrun: the losses, the weights and the files of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cli import layersift
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError, TrainingError
from layersift.processes import take_sharding
from layersift.training import fit
from layersift.training.output import RunOutput
from layersift.training.sharding import require_shardable
from layersift.training.trainer import LengthGroupedSampler, OwnShare, training_arguments
from layersift.training.watch import Watch
from pair import run_pair
from training import FAST, classify

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
FLAGS = ["--device", "cpu", "--dtype", "float32", "--learning-rate", "0.01"]


def launch(count, *arguments, **more):
    command = [*LAUNCH, str(count), "-m", "layersift", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **more)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """37 rows, so that the last batch of 12 holds one alone; answers of several lengths."""
    place = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    asked = [{"prompt": f"w{i} w{i % 7}", "response": "w3 w5 " * (1 + i % 5) + str(i % 3)} for i in range(37)]
    place.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return place


@pytest.fixture(scope="module")
def train(llama_directory, rows):
    def given(*more):
        return ["train", llama_directory, "--data", rows, *FLAGS, "--batch-size", "12", "--epochs", "3", *more]

    return given


def weights(run):
    return load_file(run / "adapter_model.safetensors")


def assert_alike(run, other, tolerance=2e-5):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < tolerance
    records = [json.loads((place / "layersift.json").read_text()) for place in (run, other)]
    assert records[0]["train_loss"] == pytest.approx(records[1]["train_loss"], abs=1e-4)
    assert records[0]["steps"] == records[1]["steps"]
    assert {path.name for path in run.iterdir()} == {path.name for path in other.iterdir()}
    logs = [[json.loads(line) for line in (p / "log.jsonl").read_text().splitlines()] for p in (run, other)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    assert [entry["loss"] for entry in logs[0]] == pytest.approx([entry["loss"] for entry in logs[1]], abs=1e-3)


WAYS = {
    "the last half, the best of the looks": ["--layers", "last:2", "--hold-back", "0.2", "--patience", "1", "--merge"],
    "freezing, accumulated": ["--strategy", "freezing", "--gradient-accumulation", "2"],
    "in rotation": ["--strategy", "rotating:2@3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_end_in_the_weights_and_files_of_one(train, tmp_path, way):
    alone = layersift(*train(*WAYS[way], "-o", tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    both = launch(2, *train(*WAYS[way], "-o", tmp_path / "both"))
    assert both.returncode == 0, both.stderr
    assert_alike(tmp_path / "both", tmp_path / "alone")
    assert both.stdout.count("written to") == 1
    assert json.loads((tmp_path / "both/layersift.json").read_text())["device"] == "cpu, 2 processes"


def begun(partial, command):
    """The process of a training that has come to a checkpoint of its own."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    before, until = set(checkpoints(partial)), time.monotonic() + 120
    while not set(checkpoints(partial)) - before and time.monotonic() < until:
        time.sleep(0.05)
    return process


def checkpoints(partial):
    return partial.glob("checkpoints/checkpoint-*/trainer_state.json")


def assert_goes_on_alone_and_together(command, killed, whole):
    """A training that was killed goes on in one process, is killed there, and ends in two as the undisturbed one."""
    alone = begun(killed.with_name(f"{killed.name}.partial"), [sys.executable, "-m", "layersift", *map(str, command)])
    alone.kill()
    alone.communicate()
    ended = launch(2, *command)
    assert ended.returncode == 0, ended.stderr
    assert_alike(killed, whole)


@pytest.mark.slow
def test_the_end_of_one_process_ends_all_and_one_or_two_go_on(train, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--epochs", "60", "--learning-rate", "0.0001"]  # low, so that rounding does not grow
    assert layersift(*train(*flags, "-o", whole)).returncode == 0
    partial = tmp_path / "killed.partial"
    launched = begun(partial, [*LAUNCH, "2", "-m", "layersift", *map(str, train(*flags, "-o", killed))])
    children = subprocess.run(["pgrep", "-P", str(launched.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, said = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert not killed.exists()
    assert said.count("error: another of the processes has ended") <= 1  # torchrun may have ended it first
    assert "layersift itself failed" not in said
    assert_goes_on_alone_and_together(train(*flags, "--resume", "-o", killed), killed, whole)


@pytest.mark.slow
def test_evaluation_and_predictions_are_shared(train, rows, tmp_path):
    assert layersift(*train("-o", tmp_path / "run")).returncode == 0
    asked = [
        ["evaluate", tmp_path / "run", "--data", rows, "--device", "cpu", "--exact-match", "5", "-o"],
        ["predict", tmp_path / "run", "--data", rows, "--device", "cpu", "--max-new-tokens", "4", "-o"],
    ]
    for command in asked:
        one, two = (tmp_path / f"{command[0]}-{of}.jsonl" for of in ("one", "two"))
        alone = layersift(*command, one)
        assert alone.returncode == 0, alone.stderr
        both = launch(2, *command, two)
        assert both.returncode == 0, both.stderr
        assert both.stdout == alone.stdout.replace(str(one), str(two))
    read = [json.loads((tmp_path / f"evaluate-{of}.jsonl").read_text()) for of in ("one", "two")]
    assert read[0]["metrics"] == pytest.approx(read[1]["metrics"], abs=1e-5)
    assert read[0]["outcomes"] == pytest.approx(read[1]["outcomes"], abs=1e-5)
    assert (tmp_path / "predict-one.jsonl").read_text() == (tmp_path / "predict-two.jsonl").read_text()


@pytest.mark.slow
def test_what_all_processes_meet_is_said_once(train, tmp_path):
    refused = launch(2, *train("--method", "adalora", "-o", tmp_path / "run"))
    assert refused.returncode != 0
    assert refused.stderr.count("error: ") == 1, refused.stderr
    assert "train in one process" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_is_shared_evenly_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr("layersift.training.trainer.rank_and_count", lambda: (0, 2))
    with pytest.raises(LayersiftError, match="--batch-size 5 is shared by 2 processes; give a multiple of 2"):
        training_arguments(TrainSettings(batch_size=5), RunOutput(tmp_path / "run"), 10, 0, torch.device("cpu"))


def test_what_several_processes_cannot_do_is_refused(call, train, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    auto = call(*train("--learning-rate", "auto", "-o", "run"), cwd=tmp_path)
    assert "--learning-rate auto searches in one process" in auto.stderr
    assert auto.returncode == 2


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("count", [8, 12, 13, 23, 37])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_shares_make_up_the_batches_of_one_process(monkeypatch, count, processes, by_row):
    whole = LengthGroupedSampler([i % 9 for i in range(count)], 12, seed=3)
    owners = {}
    for epoch in range(2):
        whole.set_epoch(epoch)
        shares = []
        for rank in range(processes):
            monkeypatch.setattr("layersift.training.trainer.rank_and_count", lambda rank=rank: (rank, processes))
            share = OwnShare(whole, count, by_row)
            shares.append(list(share))
            assert len(shares[-1]) == len(share)
            assert all(shares[-1]), "a process without a batch would wait for ever"
            if by_row:
                own = {i for batch in shares[-1] for i in batch} - {count}
                assert owners.setdefault(rank, own) == own
        order = list(whole)
        for place, parts in enumerate(zip(*shares, strict=True)):
            rows = order[12 * place : 12 * place + 12]
            assert sorted(i for part in parts for i in part if i != count) == sorted(rows)
            if not by_row:
                assert max(map(len, parts)) <= -(-12 // processes)


@pytest.mark.slow
def test_states_are_served_in_several_processes(train, tmp_path):
    """Each keeps those of its own rows, which come to it again."""
    script = tmp_path / "counting.py"
    script.write_text(
        "import layersift.step.activation_cache as place, layersift.__main__ as main\n"
        "serve = place.ActivationCache.serve\n"
        "def counted(cache, entering):\n    print('served')\n    return serve(cache, entering)\n"
        "place.ActivationCache.serve = counted\nmain.main()\n"
    )
    flags = train("--layers", "last:2", "-o", tmp_path / "run")
    both = subprocess.run(
        [*LAUNCH, "2", str(script), *map(str, flags)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("served") >= 12  # two later epochs of four batches, in two processes; some hold no row


FSDP = ["--sharding", "fsdp"]
IN_SHARDS = {
    "the last half, checkpointed": ["--layers", "last:2", "--gradient-checkpointing"],
    "in rotation, accumulated": ["--strategy", "rotating:2@3", "--gradient-accumulation", "2"],
}
SHARDS = """
import json, torch
from torch import distributed
from layersift.models.stacks import find_stack
from layersift.training.sharding import is_shard, shard_blocks
from prefixed import adapted

distributed.init_process_group("gloo")
model = adapted("llama", (1, 3))
stack = find_stack(model.get_base_model())
whole = {name: p.numel() for name, p in model.named_parameters()}
trained = {name for name, p in model.named_parameters() if p.requires_grad}
shard_blocks(model, stack, torch.device("cpu"))
held = {name: (p.to_local().numel() if is_shard(p) else p.numel()) for name, p in model.named_parameters()}
print(json.dumps({"whole": whole, "held": held, "trained": sorted(trained)}), flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_process_holds_half_of_what_is_frozen_in_the_blocks_and_all_else_whole(tmp_path):
    one, two = run_pair(SHARDS, tmp_path)
    for name, count in one["whole"].items():
        if ".layers." in name and name not in one["trained"]:
            assert one["held"][name] + two["held"][name] == count
            assert one["held"][name] <= (count + 64) // 2
        else:
            assert one["held"][name] == two["held"][name] == count


@pytest.mark.parametrize("sharded", [False, True])
def test_a_training_shards_where_it_is_asked_to_and_what_is_trained_is_whole(
    sharded, monkeypatch, tmp_path, bert_directory
):
    seen = []
    monkeypatch.setattr(fit, "shard_blocks", lambda *given: seen.append(given))
    setting = classify(bert_directory)
    setting.train(tmp_path / "run", replace(FAST, epochs=1), sharded=sharded)
    assert len(seen) == sharded
    for adapted, stack, device in seen:
        assert hasattr(adapted, "peft_config")
        assert stack == setting.selection.stack(setting.loaded.model)
        assert device == torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("way", IN_SHARDS)
def test_shards_end_in_the_weights_and_files_of_one_process(train, tmp_path, way):
    alone = layersift(*train(*IN_SHARDS[way], "-o", tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    both = launch(2, *train(*IN_SHARDS[way], *FSDP, "-o", tmp_path / "both"))
    assert both.returncode == 0, both.stderr
    assert_alike(tmp_path / "both", tmp_path / "alone")


@pytest.mark.slow
def test_accelerates_configuration_asks_for_shards_and_a_killed_training_goes_on_whole_and_in_shards(
    train,
    tmp_path,
    monkeypatch,
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--epochs", "60", "--learning-rate", "0.0001"]
    assert layersift(*train(*flags, "-o", whole)).returncode == 0
    partial = tmp_path / "killed.partial"
    monkeypatch.setitem(ENVIRONMENT, "ACCELERATE_USE_FSDP", "true")
    launched = begun(partial, [*LAUNCH, "2", "-m", "layersift", *map(str, train(*flags, "-o", killed))])
    subprocess.run(["pkill", "-KILL", "-P", str(launched.pid)], check=True)
    launched.communicate(timeout=60)
    assert not killed.exists()
    assert_goes_on_alone_and_together(train(*flags, "--resume", "-o", killed), killed, whole)


@pytest.mark.slow
def test_what_shards_cannot_do_is_refused_once(train, tmp_path):
    refused = launch(2, *train(*FSDP, "--hold-back", "0.2", "-o", tmp_path / "run"))
    assert refused.returncode != 0
    assert refused.stderr.count("error: ") == 1, refused.stderr
    assert "does not score while it trains" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "merge", "watch", "said"),
    [
        ("full", False, Watch(), "train adapters"),
        ("lora", True, Watch(), "leave --merge away"),
        ("lora", False, Watch(rows="digest"), "layersift evaluate"),
    ],
)
def test_what_needs_a_whole_model_is_refused(method, merge, watch, said):
    loaded = SimpleNamespace(model=torch.nn.Linear(2, 2))
    with pytest.raises(TrainingError, match=said):
        require_shardable(loaded, watch, method, merge)


def test_accelerates_configuration_is_followed_or_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert take_sharding(False) is False  # one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert take_sharding(False) is True
    assert take_sharding(False) is False  # taken from Accelerate
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(LayersiftError, match="DeepSpeed's checkpoints are pickles"):
        take_sharding(True)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(LayersiftError, match="ACCELERATE_USE_MEGATRON_LM is set: train shards"):
        take_sharding(True)
