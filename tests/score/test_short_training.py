"""Short trainings against AdamW written out in float64, and that criteria which train go down the loss, not up."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from layersift.data.examples import Example
from layersift.errors import DataError
from layersift.models.stacks import find_stack
from layersift.score.context import ScoringContext
from layersift.score.criteria.eva import eva_ranks
from layersift.score.criteria.lora_drop import LORA_DROP
from layersift.score.criteria.pilot import PILOT
from layersift.score.criterion import score_layers
from layersift.score.short_training import mean_loss, train_steps, with_adapters
from tiny import tiny


def sentences(count, seed=0, shortest=4, longest=9):
    """Of two classes, which the first word tells apart; no two begin alike."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = (5 + i, *(int(t) for t in rng.integers(60, 100, int(rng.integers(shortest, longest)))))
        made.append(Example(ids, (True,) * len(ids), label=i % 2))
    return tuple(made)


def answers(count, seed=0, answer=(17, 23)):
    """Prompts that all have the same answer."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = tuple(int(t) for t in rng.integers(30, 100, int(rng.integers(3, 8))))
        ids = (*prompt, *answer)
        made.append(Example(ids, (True,) * len(ids), (False,) * len(prompt) + (True,) * len(answer)))
    return tuple(made)


def context(name, examples, **settings):
    model = tiny(name)
    kind = "classification" if name == "bert" else "instruction"
    return ScoringContext(model, find_stack(model), examples, kind, **settings)


def batches_of(model):
    """A list that the input ids of every call of ``model`` are added to."""
    seen = []
    model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True)
    return seen


def negative_log_likelihood(logits, labels):
    return -torch.log_softmax(logits, dim=-1)[torch.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("steps", [1, 12])
def test_the_steps_are_those_of_adam_down_the_loss_with_a_rate_that_falls_to_nothing(steps):
    given = context("bert", sentences(20))
    exact = copy.deepcopy(given.model).double()
    seen = batches_of(given.model)
    trained = list(given.model.classifier.parameters())
    train_steps(given, given.model, trained, given.examples, steps, seed=3)
    assert len(seen) == steps

    label_of = {e.input_ids[0]: e.label for e in given.examples}
    weights = list(exact.classifier.parameters())
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    for step, ids in enumerate(seen):
        labels = torch.tensor([label_of[int(i)] for i in ids[:, 0]])
        loss = negative_log_likelihood(exact(input_ids=ids, attention_mask=(ids > 0).long()).logits, labels)
        gradients = torch.autograd.grad(loss, weights)
        rate = 1e-3 * (1 - step / steps)
        with torch.no_grad():
            for w, g, (first, second) in zip(weights, gradients, moments, strict=True):
                first.mul_(0.9).add_(0.1 * g)
                second.mul_(0.999).add_(0.001 * g * g)
                unbiased, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                w -= rate * unbiased / (square.sqrt() + 1e-8)
    for ours, theirs in zip(trained, weights, strict=True):
        torch.testing.assert_close(ours.detach().double(), theirs.detach(), atol=2e-6, rtol=0)


def test_every_example_is_seen_as_often_as_any_other_in_an_order_that_the_seed_decides():
    orders = []
    for seed in (1, 1, 2):
        given = context("bert", sentences(20))
        seen = batches_of(given.model)
        train_steps(given, given.model, list(given.model.classifier.parameters()), given.examples, 10, seed)
        assert [len(ids) for ids in seen] == [8] * 10
        orders.append([int(i) - 5 for ids in seen for i in ids[:, 0]])
    first, again, other = orders
    assert first == again != other
    epochs = [first[i : i + 20] for i in range(0, 80, 20)]  # four epochs of twenty, over the edges of the batches
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_fewer_examples_than_a_batch_fill_it_by_coming_again():
    given = context("bert", sentences(3))
    seen = batches_of(given.model)
    train_steps(given, given.model, list(given.model.classifier.parameters()), given.examples, 2, seed=0)
    counts = np.bincount([int(i) - 5 for ids in seen for i in ids[:, 0]], minlength=3)
    assert counts.sum() == 16
    assert counts.max() - counts.min() <= 1


def test_no_gradient_is_left_behind_by_the_last_step():
    given = context("bert", sentences(8))
    trained = list(given.model.classifier.parameters())
    train_steps(given, given.model, trained, given.examples, 2, seed=0)
    assert all(p.grad is None for p in trained)


def test_the_loss_is_that_of_a_labelled_token():
    """The mean over all tokens of all responses, not the mean over the samples of their means."""
    given = context("llama", (*answers(2, answer=(17,)), *answers(2, 1, answer=(23, 24, 25, 26))))
    total, count = 0.0, 0
    for example in given.examples:
        with torch.no_grad():
            chances = torch.log_softmax(given.model(torch.tensor([example.input_ids])).logits[0].double(), dim=-1)
        for t, (token, written) in enumerate(zip(example.input_ids, example.response, strict=True)):
            if written:
                total, count = total - float(chances[t - 1, token]), count + 1
    assert count == 10
    assert mean_loss(given, given.model, given.examples).item() == pytest.approx(total / count, rel=1e-5)


def test_the_loss_of_numbers_is_half_the_squared_error_and_of_none_is_refused():
    given = dataclasses.replace(context("bert", sentences(4)), kind="regression")
    with torch.no_grad():
        said = torch.cat([given.model(torch.tensor([e.input_ids])).logits[:, 0] for e in given.examples])
    wanted = float((said - torch.tensor([0.0, 1.0, 0.0, 1.0])).square().mean() / 2)
    assert mean_loss(given, given.model, given.examples).item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(DataError, match="these samples have none"):
        mean_loss(given, given.model, [dataclasses.replace(given.examples[0], label=None)])


def test_while_adapters_are_on_dropout_is_off_and_a_head_learns_and_afterwards_it_does_not():
    given = context("bert", sentences(8))
    given.model.train()
    own = set(given.model.modules())
    given.model.classifier.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in given.model.named_parameters()}
    with with_adapters(given) as adapted:
        ids = torch.tensor([given.examples[0].input_ids])
        assert torch.equal(adapted(input_ids=ids).logits, adapted(input_ids=ids).logits)
        assert not any(m.training for block in given.stack.blocks(given.model) for m in block.modules() if m in own)
        learning = {n.removeprefix("base_model.model.") for n, p in adapted.named_parameters() if p.requires_grad}
        assert {n for n in learning if "lora_" not in n} == {"classifier.weight", "classifier.bias"}
        layers = {int(n.split(".layer.")[1].split(".")[0]) for n in learning if "lora_" in n}
        assert layers == {0, 1, 2, 3}
        shapes = {n: p.shape for n, p in adapted.named_parameters() if "lora_A" in n}
        assert {shape[0] for shape in shapes.values()} == {8}
        scaling = {m.scaling["default"] for m in adapted.modules() if hasattr(m, "lora_A")}
        assert scaling == {2.0}  # alpha 16 over rank 8
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        train_steps(given, adapted, parameters, given.examples, 5, seed=0)
        assert not torch.equal(given.model.classifier.weight, before["classifier.weight"])
    assert all(m.training for m in given.model.modules())
    after = dict(given.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in given.model.classifier.parameters())
    assert all(p.requires_grad for p in given.model.bert.parameters())


def test_after_lora_drops_training_the_sample_is_told_better_than_before():
    given = context("llama", answers(16), probe_steps=40)
    losses = []

    def after_the_head(module, args, output):
        if not torch.is_grad_enabled():  # the pass that measures, one sample at a time
            example = given.examples[len(losses)]
            chances = torch.log_softmax(output[0].double(), dim=-1)
            losses.append(-float(chances[-3, example.input_ids[-2]] + chances[-2, example.input_ids[-1]]) / 2)

    before = mean_loss(given, given.model, given.examples).item()
    handle = given.model.lm_head.register_forward_hook(after_the_head)
    shares = score_layers(LORA_DROP, given).importance
    handle.remove()
    assert len(losses) == 16
    assert np.mean(losses) < before - 0.2
    assert sum(shares) == pytest.approx(1)


def deaf(model, layers):
    """Make the attention of some layers write nothing, so that adapters on its queries and values change nothing."""
    with torch.no_grad():
        for layer in layers:
            model.model.layers[layer].self_attn.o_proj.weight.zero_()


@pytest.mark.parametrize("alive", [1, 2])
def test_lora_drop_sees_the_layer_whose_adapters_have_a_gradient(alive):
    given = context("llama", answers(12), probe_steps=10)
    deaf(given.model, {0, 1, 2, 3} - {alive})
    found = score_layers(LORA_DROP, given).importance
    assert found == pytest.approx([float(i == alive) for i in range(4)])
    deaf(given.model, [alive])
    assert score_layers(LORA_DROP, given).undefined == dict.fromkeys(range(4), "the adapters added nothing")


@pytest.mark.parametrize("alive", [1, 2])
def test_pilot_chooses_the_layer_whose_training_helps(alive):
    """Training the others leaves the loss where it was: going up the loss, or taking the worst, would choose them."""
    given = context("llama", answers(32), probe_steps=160, count=1)
    deaf(given.model, {0, 1, 2, 3} - {alive})
    found = score_layers(PILOT, given)
    assert found.top(1) == (alive,)
    assert found.importance[alive] == 3.0
    assert sorted(found.importance) == [0.0, 1.0, 2.0, 3.0]
    assert all(math.isfinite(v) for v in found.importance)


def test_eva_leaves_the_global_generator_and_depends_on_its_seed_alone():
    given = context("llama", answers(24))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = eva_ranks(given)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert eva_ranks(given) == first
