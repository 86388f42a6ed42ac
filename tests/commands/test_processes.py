"""Commands that several processes are started of, as torchrun does: some share the work, others refuse."""

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


@pytest.mark.parametrize("command", ["run", "sweep", "compare", "oracle", "advise"])
def test_what_works_in_one_process_refuses_to_be_several(call, monkeypatch, tmp_path, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = call(command, "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {command} works in one process, and WORLD_SIZE says that 2 were started")
    assert "torchrun" in refused.stderr


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
