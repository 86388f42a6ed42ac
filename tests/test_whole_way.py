"""A choice of architectures along the whole way; `python tests/helpers/whole_way.py` tries all of them."""

import pytest

from tiny_types import kinds
from whole_way import STEPS, in_a_process_of_its_own

FEW = ("bert", "llama", "t5")
MANY = (
    *("roberta", "deberta-v2", "electra", "modernbert", "convbert", "fnet", "mpnet"),
    *("gpt2", "bloom", "mpt", "gemma2", "qwen3", "phi3", "mixtral", "glm4_moe", "ernie4_5_moe", "qwen3_next"),
    *("gpt_oss", "granitemoe", "mamba", "jamba", "lfm2", "gemma3n_text", "bart", "mt5", "switch_transformers"),
)


def everything_is_right(model_type):
    found = in_a_process_of_its_own(model_type, kinds()[model_type])
    assert {step: found.get(step, "not reached") for step in STEPS} == dict.fromkeys(STEPS, ""), found


@pytest.mark.parametrize("model_type", FEW)
def test_the_whole_way(model_type):
    everything_is_right(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MANY)
def test_the_whole_way_of_many(model_type):
    everything_is_right(model_type)
