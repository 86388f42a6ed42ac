"""benchmarks/calculators.py: each calculator's arithmetic by hand, and the measures of the table."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import calculators

RESULT = json.loads(calculators.RESULT.read_text())
LORA = calculators.Case("llama", 64, 2, 100, batch=3, tokens=5)
FULL = calculators.Case("llama", 64, 2, 100, batch=3, tokens=5, method="full", checkpointing=True)
PACKED = calculators.Case("llama", 64, 2, 100, batch=3, tokens=5, quantization="4bit")


def test_accelerate_takes_four_times_the_model():
    assert calculators.accelerate_bytes(torch.nn.Linear(10, 10, bias=False)) == 4 * 400


@pytest.mark.parametrize(("case", "expected"), [(LORA, 4000), (FULL, 18000), (PACKED, 500)])
def test_llama_factory_takes_so_many_bytes_a_parameter(case, expected):
    assert calculators.llama_factory_bytes(1000, case) == expected


def config():
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    return transformers.LlamaConfig(vocab_size=100, num_hidden_layers=2, tie_word_embeddings=False, **sizes)


def test_unsloths_formula_of_lora():
    # a block: 64 (64 + 32 + 32 + 64) of attention, 3 x 64 x 96 of the MLP; beside them norms, embeddings and head
    weights = 4 * (2 * (12288 + 18432) + 2 * 64 * 2 + 2 * 6400)
    adapters = 2 * 8 * (4 * 64 + 2 * 96 + 3 * 160)
    activations = 4 * 1.25 * 15 * (128 + 2 + 192) * 2
    floor = min(0.15 * weights, max(activations, 12 * adapters))
    expected = weights + (4 + 12) * adapters + max(4 * adapters, floor) + activations
    assert calculators.unsloth_bytes(config(), LORA, 8) == round(expected)


def test_unsloths_formula_of_full_training_with_checkpointing():
    trained = 2 * (12288 + 18432) + 2 * 64 * 2 + 2 * 6400
    activations = 4 * 1.25 * 15 * (128 + 2 + 192) * 2  # of two layers, however many there are
    assert calculators.unsloth_bytes(config(), FULL, 8) == (4 + 12 + 4) * trained + activations


def test_unsloths_formula_packs_the_blocks_alone():
    blocks, beside = 2 * (12288 + 18432), 2 * 64 * 2 + 2 * 6400
    adapters, activations = 2 * 8 * 928, 4 * 1.25 * 15 * 322 * 2
    weights = 4 * beside + blocks * 2 / 3.2
    gradients = max(4 * adapters, 0.15 * weights)
    assert calculators.unsloth_bytes(config(), PACKED, 8) == round(weights + 16 * adapters + gradients + activations)


def test_the_measures_are_of_the_cases():
    cases = [
        {"held": 100, "estimates": dict.fromkeys(calculators.CALCULATORS.values(), estimate)}
        for estimate in (90, 100, 150)
    ]
    assert calculators.summarise(cases)["ours"] == {"median": pytest.approx(0.1), "worst": 0.5, "safe": 2 / 3}
    assert RESULT["summary"] == calculators.summarise(RESULT["cases"])
    assert [case["name"] for case in RESULT["cases"]] == list(calculators.CASES)
