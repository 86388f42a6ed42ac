"""A recipe under torchrun: the files, the selection, the weights and the metrics of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ALONE = [sys.executable, "-m", "layersift"]
PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "layersift"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}


def start(command, *words):
    words = [*command, *map(str, words)]
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(command, *words):
    """What a command prints, which ends well."""
    process = start(command, *words)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def recipe(tmp_path, llama_directory):
    for name, count in (("train", 37), ("test", 21)):
        rows = [{"prompt": f"w{i} w{i % 7}", "response": "w3 w5 " * (1 + i % 5) + str(i % 3)} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"name": llama_directory, "device": "cpu", "dtype": "float32"},
        "data": str(tmp_path / "train.jsonl"),
        "evaluate": {"data": str(tmp_path / "test.jsonl"), "exact_match": 4, "max_new_tokens": 4},
        "variants": ["selected", "last", "top-1", "base"],
        "select": {"criterion": "fisher"},
        "train": {"epochs": 2, "batch_size": 12, "learning_rate": 0.01},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "r.yaml"


def files_in(output):
    return {str(path.relative_to(output)) for path in Path(output).rglob("*")}


def read(output, name):
    return json.loads((output / name).read_text())


def assert_alike(both, alone):
    assert files_in(both) == files_in(alone)
    for path in alone.glob("selection.json"):
        theirs, ours = read(alone, path.name), read(both, path.name)
        assert ours["selected_layers"] == theirs["selected_layers"]
        assert ours["importance"] == pytest.approx(theirs["importance"], rel=1e-4)
    for path in alone.glob("cells/*.json"):
        one, two = read(alone, f"cells/{path.name}"), read(both, f"cells/{path.name}")
        assert one["metrics"] == pytest.approx(two["metrics"], abs=1e-4)
        assert one["outcomes"] == pytest.approx(two["outcomes"], abs=1e-3)
    for path in alone.glob("variants/*/adapter_model.safetensors"):
        weights = [load_file(place / path.relative_to(alone)) for place in (alone, both)]
        assert weights[0].keys() == weights[1].keys()
        assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 2e-5


def test_two_processes_carry_out_a_recipe_as_one_does(recipe, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    finished(ALONE, "run", recipe, "-o", alone)
    assert finished(PAIR, "run", recipe, "-o", both).count("written to") == 1
    assert_alike(both, alone)
    assert len(list(alone.glob("variants/*"))) == 3
    before = {path: path.stat().st_mtime_ns for path in both.glob("cells/*")}
    finished(ALONE, "run", recipe, "-o", both)
    assert {path: path.stat().st_mtime_ns for path in both.glob("cells/*")} == before


def test_the_end_of_one_process_ends_the_run_and_one_process_goes_on(recipe, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    longer = ["run", recipe, "--set", "train.epochs=30", "--set", "train.learning_rate=0.0001", "--set"]
    longer += ["variants=[last, base]", "-o"]
    finished(ALONE, *longer, alone)
    going, until = start(PAIR, *longer, both), time.monotonic() + 200
    while not list(both.glob("variants/*.partial/checkpoints/checkpoint-*/trainer_state.json")):
        assert going.poll() is None, going.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(going.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, said = going.communicate(timeout=60)
    assert going.returncode != 0
    assert "layersift itself failed" not in said
    assert not list(both.glob("variants/last"))
    finished(ALONE, *longer, both)
    assert_alike(both, alone)
