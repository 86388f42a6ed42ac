"""Spectrum as its users mean it: the top share of each kind of module, unfrozen or with LoRA on them."""

import json
import re

import numpy as np
import pytest
import transformers as tf
import yaml

from layersift.errors import SelectionError
from layersift.models.stacks import find_stack
from layersift.select.modules import top_modules
from tiny import tiny


def ratio(weight):
    """The authors' formula, in NumPy."""
    values = np.linalg.svd(weight, compute_uv=False)
    low, high = np.quantile(values, [0.25, 0.75])
    threshold = (high - low) / 1.349 * (1 + np.sqrt(min(weight.shape) / max(weight.shape)))
    noise = values[values <= threshold]
    return values[values > threshold].sum() / (noise.sum() if len(noise) else 1.0) / values[0]


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.mark.parametrize(("share", "each"), [(0.25, 1), (0.5, 2), (1.0, 4), (0.01, 1)])
def test_the_top_share_of_each_kind_is_chosen(llama, share, each):
    stack = find_stack(llama)
    chosen = top_modules(llama, stack, share)
    kinds = {name for _, name in chosen}
    assert len(kinds) == 7
    for kind in kinds:
        values = {
            layer: ratio(llama.get_submodule(f"{stack.block_path(layer)}.{kind}").weight.detach().double().numpy())
            for layer in range(4)
        }
        best = sorted(values, key=lambda layer: -values[layer])[:each]
        assert [layer for layer, name in chosen if name == kind] == sorted(best)


@pytest.mark.parametrize("share", [0, -1, 1.01])
def test_a_share_out_of_range_is_refused(llama, share):
    with pytest.raises(SelectionError, match="out of range"):
        top_modules(llama, find_stack(llama), share)


@pytest.fixture(scope="module")
def unfrozen(llama_directory):
    model = tf.AutoModelForCausalLM.from_pretrained(llama_directory)
    stack = find_stack(model)
    return {f"{stack.block_path(layer)}.{name}.weight" for layer, name in top_modules(model, stack, 0.25)}


def test_axolotl_unfreezes_exactly_these_parameters(llama_directory, unfrozen, tmp_path, call):
    common = ("export", "--spectrum", "0.25", "--unfreeze", "--model", llama_directory, "--to")
    written = call(*common, "axolotl", "-o", "axolotl.yaml", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    patterns = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())["unfrozen_parameters"]
    matchers = [re.compile(pattern.replace(".", r"\.")) for pattern in patterns]  # points are points there
    model = tf.AutoModelForCausalLM.from_pretrained(llama_directory)
    assert {n for n, _ in model.named_parameters() if any(m.match(n) for m in matchers)} == unfrozen
    python = call(*common, "trl", "--json", cwd=tmp_path)
    names = json.loads(python.stdout)
    assert set(names["unfrozen"]) == unfrozen
    exec(names["text"], {"model": model})
    assert {n for n, p in model.named_parameters() if p.requires_grad} == unfrozen


def test_lora_goes_on_the_same_modules(llama_directory, unfrozen, tmp_path, call):
    common = ("export", "--spectrum", "0.25", "--model", llama_directory, "--rank", "4", "--json", "--to")
    for trainer in ("axolotl", "trl"):
        result = json.loads(call(*common, trainer, cwd=tmp_path).stdout)
        assert {f"{name}.weight" for name in result["adapted"]} == unfrozen
        assert result["fragment"]["lora_r"] == 4
