"""Commands that several processes are started of, as torchrun does: some share the work, others refuse."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from cli import layersift
from layersift.records.selection import Selection


@pytest.fixture
def data(tmp_path):
    rows = [{"text": f"w{i} w{i % 7} " + "w3 " * (i % 5), "label": i % 2} for i in range(41)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("command", ["sweep", "compare", "oracle", "advise"])
def test_what_works_in_one_process_refuses_to_be_several(call, monkeypatch, tmp_path, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = call(command, "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {command} works in one process, and WORLD_SIZE says that 2 were started")
    assert "torchrun" in refused.stderr


def test_run_in_several_processes_refuses_what_they_cannot_share(call, monkeypatch, tmp_path, data, bert_directory):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = {"model": str(bert_directory), "data": str(data), "variants": ["last"], "output": "out"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    (tmp_path / "f.yaml").write_text(json.dumps({"figure": "bars", "recipes": ["r.yaml"], "output": "out"}))
    refusals = {
        ("r.yaml", "--jobs", "2"): "leave --jobs and --on away",
        ("r.yaml", "--on", "ray"): "leave --jobs and --on away",
        ("f.yaml",): "start each recipe that it names by itself",
        ("r.yaml", "--set", "train.learning_rate=auto"): "searches in one process",
        ("r.yaml", "--set", "train.batch_size=5"): "--batch-size 5 is shared by 2 processes; give a multiple of 2",
    }
    monkeypatch.setattr("layersift.processes.join_processes", contextlib.nullcontext)
    for words, said in refusals.items():
        refused = call("run", *words, cwd=tmp_path)
        assert refused.returncode == 2, words
        assert said in refused.stderr, words
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "layersift train --sharding fsdp" in call("run", "r.yaml", cwd=tmp_path).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["1", "", "many"])
def test_one_process_is_no_matter(call, monkeypatch, tmp_path, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert "x: no such file" in call("run", "x.yaml", cwd=tmp_path).stderr.replace("x.yaml", "x")


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["cka", "fisher"])
def test_select_under_torchrun_is_shared_and_written_once(bert_directory, data, tmp_path, criterion):
    alone = tmp_path / "alone.json"
    flags = ["--data", str(data), "--device", "cpu", "--criterion", criterion]
    made = layersift("select", bert_directory, *flags, "-o", alone)
    assert made.returncode == 0, made.stderr
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "layersift",
    ]
    command += ["select", str(bert_directory), *flags, "-o", str(tmp_path / "both.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    both = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("written to") == 1
    found, wanted = Selection.load(tmp_path / "both.json"), Selection.load(alone)
    assert found.mask == wanted.mask
    assert found.importance == pytest.approx(wanted.importance, rel=1e-4, abs=1e-9 if criterion == "fisher" else 1e-5)
    assert both.stdout.count(found.mask) == 1
