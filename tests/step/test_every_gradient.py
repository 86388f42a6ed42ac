"""For every text architecture and every subset of what it can train, gradients equal plain autograd's to the bit."""

import pytest

from every_gradient import try_gradients
from tiny_types import TOO_SLOW, kinds
from whole_way import in_a_process_of_its_own

FEW = ("bert", "convbert", "deberta-v2", "gpt2", "llama", "mixtral", "opt", "t5")
# Its gradients differ in the last bit from pass to pass, under plain autograd too, but not at every try.
NOT_REPEATABLE = {"doge"}
SECONDS = 40  # more than any needs alone on a core, but for a few whose reference code loops in Python


def equal_to_the_bit(model_type):
    found = in_a_process_of_its_own(model_type, kinds()[model_type], try_gradients, SECONDS)
    if "built" not in found or "signal 14" in found.get("stopped", ""):
        pytest.skip(f"not built small, or too slow: {found.get('stopped', 'no word')}")
    assert found.get("tried", 0) >= 5, found
    assert found["wrong"] == []


@pytest.mark.parametrize("model_type", FEW)
def test_gradients_of_every_subset(model_type):
    equal_to_the_bit(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(kinds()) - set(FEW) - TOO_SLOW - NOT_REPEATABLE))
def test_gradients_of_every_subset_of_the_others(model_type):
    equal_to_the_bit(model_type)
