"""Killed at random moments and started again, each command ends in the undisturbed figures."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

KILLING = Path(__file__).parents[1] / "helpers" / "killing.py"
# What depends on the clock, or on where a training was taken up again.
OF_THE_ATTEMPT = ("seconds", "train_seconds", "scoring_seconds", "memory", "peak_memory_bytes", "train_loss")


def recipe(directory, model):
    for name, seed in (("train", 0), ("test", 1)):
        chance = random.Random(seed)
        rows = [(chance.choices(range(20 * (i % 2), 20 * (i % 2) + 20), k=5), i % 2) for i in range(48)]
        lines = [json.dumps({"text": " ".join(f"w{w}" for w in words), "label": "yn"[y]}) for words, y in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines))
    values = {
        "model": str(model),
        "data": str(directory / "train.jsonl"),
        "output": str(directory / "out"),
        "evaluate": str(directory / "test.jsonl"),
        "variants": ["selected", "all", "base"],
        "select": {"max_samples": 32},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01},
        "compare": {"criteria": ["cka", "last"], "seeds": 2, "random": 1},
    }
    path = directory / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def figures(value):
    """A result without what depends on the attempt."""
    if isinstance(value, dict):
        return {key: figures(inner) for key, inner in value.items() if key not in OF_THE_ATTEMPT}
    return [figures(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.parametrize(
    ("kills", "command"),
    [(20, ["run"]), (20, ["sweep", "--sizes", "1,2,4"]), (6, ["compare"])],
    ids=["run", "sweep", "compare"],
)
def test_kills_change_no_figure(command, kills, tmp_path, bert_directory):
    given = [command[0], str(recipe(tmp_path, bert_directory)), *command[1:], "-o", str(tmp_path / "out"), "--quiet"]
    seed, out = random.randrange(10**6), tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, str(KILLING), str(out), str(kills), str(seed), *given],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == 0, (seed, killed.stderr)
    found = json.loads(killed.stdout)
    assert found["kills"] == kills
    name = "compare.json" if command[0] == "compare" else "results.json"
    wanted = figures(json.loads((tmp_path / "out-0" / name).read_text()))
    for attempt in range(1, found["finished"] + 1):
        assert figures(json.loads((tmp_path / f"out-{attempt}" / name).read_text())) == wanted, seed
