"""A full disk and Ctrl-C: one line that names it and the way on, and nothing lost that was finished."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from cli import layersift

pytestmark = pytest.mark.slow


def begun(*arguments, cwd):
    """Command and settings of a process that finds nothing imported."""
    return [sys.executable, "-m", "layersift", *map(str, arguments)], {
        "cwd": cwd,
        "env": {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        "text": True,
    }


@pytest.fixture
def place(tmp_path, bert_directory):
    rows = [{"text": f"w{i} w{i % 7} w{i % 5}", "label": i % 2} for i in range(64)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = layersift("select", bert_directory, "--data", "rows.jsonl", "-o", "s.json", "-q", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    return tmp_path


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, with 400 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk of its own can be made here: {mounted.stderr.strip()[:80]}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("flags", [("--epochs", 2), ("--epochs", 1, "--merge")])
def test_a_full_disk_is_named_and_a_larger_one_goes_on(place, small_disk, bert_directory, flags):
    train = ("train", bert_directory, "--data", "rows.jsonl", "--selection", "s.json", *flags)
    (small_disk / "fill").write_bytes(bytes(300 << 10))
    full = layersift(*train, "-o", small_disk / "run", cwd=place)
    assert full.returncode == 2, full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line
    assert "free some space" in line
    assert not (small_disk / "run").exists()
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = layersift(*train, "-o", small_disk / "run", "--resume", cwd=place)
    assert again.returncode == 0, again.stderr
    assert (small_disk / "run" / "adapter_model.safetensors").exists()


def test_an_interrupt_leaves_a_checkpoint_that_resume_goes_on_from(place, bert_directory):
    train = (
        "train",
        bert_directory,
        "--data",
        "rows.jsonl",
        "--selection",
        "s.json",
        "--epochs",
        24,
        "--batch-size",
        2,
    )
    assert layersift(*train, "-o", "whole", cwd=place).returncode == 0
    words, how = begun(*train, "-o", "run", cwd=place)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **how)
    training = place / "run.partial" / "training.json"
    until = time.monotonic() + 120
    while not training.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "error: interrupted" in said
    assert "--resume" in said
    assert not (place / "run").exists()
    assert list((place / "run.partial" / "checkpoints").glob("checkpoint-*"))
    assert layersift(*train, "-o", "run", "--resume", cwd=place).returncode == 0
    whole, resumed = (load_file(place / name / "adapter_model.safetensors") for name in ("whole", "run"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_a_full_disk_under_a_grid_is_named_and_a_larger_one_goes_on(place, small_disk, bert_directory):
    recipe = {
        "model": str(bert_directory),
        "data": "rows.jsonl",
        "output": str(small_disk / "grid"),
        "variants": ["all", "last"],
    }
    (place / "recipe.yaml").write_text(json.dumps({**recipe, "train": {"epochs": 2}}))
    (small_disk / "fill").write_bytes(bytes(300 << 10))
    full = layersift("run", "recipe.yaml", cwd=place)
    assert full.returncode == 2, full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line
    assert str(small_disk) in line
    assert "Traceback" not in full.stdout + full.stderr
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = layersift("run", "recipe.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
