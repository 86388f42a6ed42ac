"""Samples of a batch do not change one another: where a model would let them, they do not share a batch."""

import pytest
import torch

from layersift.data.encode import Encoder
from layersift.data.examples import Example, independent_batches
from layersift.evaluation.metrics import evaluate
from layersift.models.stacks import find_stack
from layersift.represent.positions import POSITIONS
from layersift.represent.read import represent
from tiny_types import tiny_model
from words import tokenizer


def samples():
    ids = torch.Generator().manual_seed(0)
    return [
        Example(tuple(torch.randint(9, 60, (length,), generator=ids).tolist()), (True,) * length, label=length % 2)
        for length in (3, 5, 5, 9, 14, 3)
    ]


def noisy(model_type):
    """With weights large enough for what leaks to show."""
    model = tiny_model(model_type, "classification")
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(8)
    return model


@pytest.mark.parametrize(
    ("model_type", "said"), [("convbert", True), ("fnet", True), ("bert", False), ("roberta", False)]
)
def test_representations_and_logits_are_those_of_each_sample_alone(model_type, said, caplog):
    model, some = noisy(model_type), samples()
    stack = find_stack(model)
    together = represent(model, stack, some, POSITIONS["mean"])["mean"].states
    for index, sample in enumerate(some):
        alone = represent(model, stack, [sample], POSITIONS["mean"])["mean"].states
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[index], theirs[0], atol=1e-4, rtol=1e-4)
    assert ("only samples of one length share a batch" in caplog.text) == said
    encoder = Encoder(tokenizer(), "classification", ("0", "1"))
    outcomes = evaluate(model, encoder, some, 0).outcomes
    assert outcomes == tuple(evaluate(model, encoder, [sample], 0).outcomes[0] for sample in some)


def test_a_model_whose_samples_change_one_another_reads_each_alone(caplog):
    model, some = noisy("bert"), samples()
    model.bert.encoder.layer[1].register_forward_hook(lambda m, a, out: out + out.mean(dim=0, keepdim=True))
    stack = find_stack(model)
    together = represent(model, stack, some, POSITIONS["first"])["first"].states
    alone = represent(model, stack, some[:1], POSITIONS["first"])["first"].states
    torch.testing.assert_close(together[-1][0], alone[-1][0], atol=1e-4, rtol=1e-4)
    assert "each is read alone" in caplog.text


def test_what_is_read_and_what_is_written_have_to_be_of_one_length_each():
    def of(read, written):
        return Example((5,) * read, (True,) * read, target=(6,) * written)

    def say(inputs):  # heeds how far a batch is padded
        ids = inputs["input_ids"]
        return torch.full((*ids.shape, 1), float(ids.shape[1]))

    some = [of(3, 5), of(5, 3), of(3, 5), of(14, 1)]
    lengths = [len(e) + len(e.target) for e in some]
    batches = independent_batches(tiny_model("t5", "seq2seq"), some, lengths, 1000, 0, say)
    assert sorted(sorted(batch) for batch in batches) == [[0, 2], [1], [3]]


@pytest.mark.parametrize(("by", "apart"), [(0.02, False), (0.3, True)])
def test_in_bfloat16_another_rounding_is_no_neighbour(by, apart, caplog):
    """SmolLM2 says of a padded text what it says of the text alone to 0.0013 of the largest value, on a CPU."""

    def say(inputs):  # what is said changes with the length of the padding
        ids = inputs["input_ids"]
        return torch.full((*ids.shape, 1), 1 + by * (ids.shape[1] > 7), dtype=torch.bfloat16)

    some = samples()
    batches = independent_batches(tiny_model("bert", "classification"), some, [len(e) for e in some], 1000, 0, say)
    assert (len(batches) > 1) == apart
    assert ("does not mask all padding" in caplog.text) == apart
