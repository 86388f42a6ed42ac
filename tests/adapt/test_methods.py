"""Every PEFT method that targets modules: on the selected layers only, trained, saved, loaded."""

import re

import peft
import pytest
import torch
from packaging.version import Version

from layersift.adapt.methods import make_config
from layersift.errors import AdapterError, LayersiftError
from methods_table import NAMES, TABLE, config, exercise


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"loftq"}))
def test_only_the_selected_layers_move_and_what_is_saved_gives_the_same_outputs(tmp_path, name):
    seen = exercise(name, tmp_path)
    assert seen.parameters > 0
    assert seen.losses[-1] < seen.losses[0]
    assert seen.moved <= {1, 3}
    assert seen.reloaded < 1e-5
    assert seen.merged is None or seen.merged < 1e-4


def test_loftq_says_what_it_needs(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(AdapterError, match="needs a CUDA or XPU device and bitsandbytes"):
        exercise("loftq", tmp_path)


@pytest.mark.skipif(Version(peft.__version__) < Version("0.21"), reason="the table is of the newest PEFT")
def test_the_documented_methods_are_those_that_are_installed():
    assert re.findall(r"^\| `(\w+)`", TABLE.read_text(), re.M) == NAMES


def test_common_settings_reach_each_configs_own_names():
    assert (config("lora").r, config("lora").lora_alpha) == (4, 8)
    assert config("loha").alpha == 8
    assert config("adalora", total_step=10).target_r == 4
    assert config("pissa").init_lora_weights == "pissa"
    assert config("dora").use_dora is True
    assert config("vera").r == 256
    assert config("lora", r=7).r == 7


def test_unknown_methods_and_options():
    with pytest.raises(LayersiftError, match=r"unknown method 'loras'\. Did you mean 'lora'"):
        config("loras")
    with pytest.raises(LayersiftError, match="unknown method 'poly'"):
        config("poly")
    with pytest.raises(AdapterError, match="has no option 'lora_alfa'; did you mean 'lora_alpha'"):
        config("lora", lora_alfa=3)
    with pytest.raises(AdapterError, match=r"method 'adalora' refuses its options .*total_step"):
        make_config("adalora", rank=4, alpha=8, dropout=0, target_modules=None, task_type="CAUSAL_LM")
