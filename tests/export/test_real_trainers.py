"""Every fragment through the trainer's own parser and its own attach function: what is adapted there is counted."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

import real_trainers
from apart import installed_apart, run_with
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from tiny import tiny

pytestmark = pytest.mark.slow
LAYERS = (0, 2)
LEAVES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
EXPECTED = sorted(f"model.layers.{i}.{leaf}" for i in LAYERS for leaf in LEAVES)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A directory with a trainer's package; made once for each, or before, where benchmarks/newest.py made it."""
    made = os.environ.get("LAYERSIFT_TRAINERS")
    place = Path(made) if made else tmp_path_factory.mktemp("trainers")

    def installed(name):
        return installed_apart(place / name, real_trainers.PACKAGES[name], "--no-deps")

    return installed


@pytest.fixture
def selection(llama_directory, tmp_path):
    file = tmp_path / "selection.json"
    stack = find_stack(tiny("llama"))
    make_selection(llama_directory, "weights:0", stack, LAYERS, DataRecord(), "picked").save(file)
    return file


def attached(name, fragment, model, packages, cwd):
    """Ranks by module in the trainer's model."""
    place = packages(name)
    script = Path(real_trainers.__file__)
    done = run_with(place, [sys.executable, str(script), name, str(fragment), str(model)], cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


WITH_RANKS = ("axolotl", "unsloth")


@pytest.mark.parametrize("name", list(real_trainers.PACKAGES))
def test_a_trainer_adapts_exactly_the_selected_layers(name, selection, llama_directory, packages, call, tmp_path):
    words = ["export", selection, "--to", name, "--target-modules", "all-linear", "--rank", "4"]
    if name == "axolotl":  # what it had for other layers is gone
        theirs = {"adapter": "lora", "lora_target_linear": True, "peft_layers_to_transform": [1]}
        (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(theirs))
        words += ["--into", tmp_path / "theirs.yaml"]
    if name in WITH_RANKS:
        words += ["--rank-of", "mlp=2", "--rank-of", "2=6"]
    fragment = tmp_path / "fragment.yaml"
    assert call(*words, "-o", fragment, cwd=tmp_path).returncode == 0
    found = attached(name, fragment, llama_directory, packages, tmp_path)
    ranks = {n: 6 if ".2." in n else 2 if "mlp" in n else 4 for n in EXPECTED}
    assert found == (ranks if name in WITH_RANKS else dict.fromkeys(EXPECTED, 4))


@pytest.mark.parametrize("name", ["trl", "axolotl", "llamafactory", "mlx"])
def test_a_trainers_parser_takes_how_an_advice_trains(name, llama_directory, packages, call, tmp_path):
    recipe = {
        "model": llama_directory,
        "data": "chats.jsonl",
        "train": {"epochs": 2, "learning_rate": 1e-3, "target_modules": "all-linear", "rank": 4, "warmup_ratio": 0.1},
        "output": "run",
        "variants": ["advised=1010"],
    }
    if name != "mlx":
        recipe["train"] |= {"method": "rslora", "loraplus_ratio": 8.0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "advice.json").write_text(json.dumps({"task": "instruction", "samples": 40}))
    fragment = tmp_path / "fragment.yaml"
    done = call("export", tmp_path, "--to", name, "-o", fragment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert attached(name, fragment, llama_directory, packages, tmp_path) == dict.fromkeys(EXPECTED, 4)
