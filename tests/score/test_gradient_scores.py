"""Scores of gradients that are written down by hand, and what is kept of gradients, exactly and up to chance."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers as tf

from layersift.data.examples import Example
from layersift.models.stacks import BlockStack, find_stack
from layersift.score import gradients
from layersift.score import gradients as gradients_module
from layersift.score.context import ScoringContext
from layersift.score.criteria.alpha_hill import hill_exponent
from layersift.score.criteria.fisher import FISHER, FISHER_SUM, fisher_trace
from layersift.score.criteria.gradient_norm import GRADIENT_NORM, RELATIVE_GRADIENT_NORM
from layersift.score.criteria.kappa import condition_number
from layersift.score.criteria.signal_to_noise import SNR
from layersift.score.criteria.spectrum import signal_to_noise
from layersift.score.criteria.taylor import TAYLOR
from layersift.score.gradients import Gradients, ModuleGradients
from layersift.score.probe import Undefined
from tiny import tiny


def written(labelled=(1.0, 2.0, 4.0), layers=3, seed=0):
    """A context whose gradients are made up: two maps in layer 0, one in layer 1, none in the last."""
    rng = np.random.default_rng(seed)
    n = len(labelled)

    def module(layer, name, parameters):
        return ModuleGradients(
            layer,
            name,
            parameters,
            float(rng.uniform(1, 5)),
            torch.from_numpy(rng.uniform(1, 9, n)).float(),
            torch.from_numpy(rng.normal(size=n)).float(),
            torch.from_numpy(rng.normal(size=(n, 6)) + 0.5).float(),
        )

    modules = (module(0, "a", 10), module(0, "b", 30), module(1, "a", 10))
    given = ScoringContext(None, BlockStack("b", "encoder", layers, ()), (None,) * n, "text")
    given.activations._gradients = Gradients(modules, torch.tensor(labelled))
    return given, modules


def values(tensor):
    return tensor.double().numpy()


def score(criterion, given):
    """Of the layers that have maps, by the rule itself, which looks at no model."""
    *found, nothing = criterion.score(given)
    assert nothing == Undefined("its block holds no linear map that sees every token")
    return found


def test_the_signal_to_noise_ratio_has_the_unbiased_variance():
    given, (a, b, c) = written()
    wanted = []
    for modules in ((a, b), (c,)):
        sketch = np.concatenate([values(m.sketch) for m in modules], axis=1)
        wanted.append(np.square(sketch.mean(axis=0)).sum() / sketch.var(axis=0, ddof=1).sum())
    assert score(SNR, given) == pytest.approx(wanted, rel=1e-9)


def test_gradients_that_do_not_vary_have_no_signal_to_noise_ratio():
    given, modules = written()
    same = tuple(dataclasses.replace(m, sketch=torch.ones(3, 6)) for m in modules)
    given.activations._gradients = Gradients(same, torch.ones(3))
    assert score(SNR, given) == [Undefined("its gradients do not vary")] * 2


def test_fisher_information_is_the_mean_square_whatever_the_number_of_labels():
    given, (a, b, c) = written()
    traces = [sum(values(m.squared_norm).mean() for m in ms) for ms in ((a, b), (c,))]
    assert score(FISHER_SUM, given) == pytest.approx(traces, rel=1e-9)
    assert score(FISHER, given) == pytest.approx([traces[0] / 40, traces[1] / 10], rel=1e-9)


def test_norms_and_effects_are_those_of_a_sample_of_mean_loss():
    given, (a, b, c) = written()
    labels = np.array([1.0, 2.0, 4.0])
    norm = [sum((np.sqrt(values(m.squared_norm)) / labels).mean() for m in ms) for ms in ((a, b), (c,))]
    assert score(GRADIENT_NORM, given) == pytest.approx(norm, rel=1e-6)
    effect = [sum((np.abs(values(m.inner)) / labels).mean() for m in ms) for ms in ((a, b), (c,))]
    assert score(TAYLOR, given) == pytest.approx(effect, rel=1e-6)
    relative = [
        (np.sqrt(sum(values(m.squared_norm) for m in ms)) / labels).mean()
        / math.sqrt(sum(m.weight_norm**2 for m in ms))
        for ms in ((a, b), (c,))
    ]
    assert score(RELATIVE_GRADIENT_NORM, given) == pytest.approx(relative, rel=1e-6)


@pytest.mark.parametrize("criterion", [GRADIENT_NORM, RELATIVE_GRADIENT_NORM, TAYLOR])
def test_samples_without_a_label_do_not_count(criterion):
    given, _ = written((1.0, 2.0, 0.0))
    some = given.of(torch.tensor([0, 1]))
    assert score(criterion, given) == pytest.approx(score(criterion, some), rel=1e-9)
    assert given.gradients().mean_a_label(torch.tensor([3.0, 8.0, 100.0])) == pytest.approx(3.5)


@pytest.mark.parametrize("criterion", [FISHER, FISHER_SUM, GRADIENT_NORM, RELATIVE_GRADIENT_NORM, SNR, TAYLOR])
def test_some_of_the_samples_and_two_samples_joined(criterion):
    given, _ = written((1.0, 2.0, 4.0, 3.0, 1.0))
    rows = torch.tensor([3, 0, 2])
    part = given.of(rows)
    alone = dataclasses.replace(given, examples=(None,) * 3, activations=type(given.activations)())
    alone.activations._gradients = given.gradients().of(rows)
    assert score(criterion, part) == pytest.approx(score(criterion, alone))
    assert score(criterion, part) != pytest.approx(score(criterion, given), rel=1e-3)
    together = given.gradients().of(torch.tensor([0, 1])).joined(given.gradients().of(torch.tensor([2, 3, 4])))
    for ours, theirs in zip(together.modules, given.gradients().modules, strict=True):
        assert (ours.layer, ours.name, ours.parameters) == (theirs.layer, theirs.name, theirs.parameters)
        for field in ("squared_norm", "inner", "sketch"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field))
    assert torch.equal(together.labelled, given.gradients().labelled)


# What is kept


def gradients_one_by_one(model, examples, name):
    """G of one map for every sample, float64 from a model in float64, with ordinary autograd."""
    found = []
    weight = model.get_submodule(name).weight
    for example in examples:
        chances = torch.log_softmax(model(torch.tensor([example.input_ids])).logits[0], dim=-1)
        written = [(t - 1, i) for t, i in enumerate(example.input_ids) if example.response[t]]
        loss = -sum(chances[t, i] for t, i in written)
        found.append(torch.autograd.grad(loss, weight)[0])
    return torch.stack(found)


def instructions(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(5, 11))
        ids = tuple(int(t) for t in rng.integers(5, 100, length))
        made.append(Example(ids, (True,) * length, (False,) * 3 + (True,) * (length - 3)))
    return tuple(made)


def llama(count=6, **settings):
    model = tiny("llama")
    return ScoringContext(model, find_stack(model), instructions(count), "instruction", **settings)


def test_the_sketch_is_the_gradient_between_two_random_maps():
    given = llama(seed=3)
    ours = {(m.layer, m.name): m for m in given.gradients().modules}
    given.model.double()
    for layer, name in ((0, "self_attn.q_proj"), (2, "mlp.down_proj")):
        truth = gradients_one_by_one(given.model, given.examples, f"model.layers.{layer}.{name}")
        norms = truth.square().sum(dim=(1, 2))
        torch.testing.assert_close(ours[layer, name].squared_norm.double(), norms, rtol=1e-4, atol=0)
        m, k = truth.shape[1:]
        left, right = gradients_module._projections(3, f"{layer}:{name}", m, k, torch.device("cpu"))
        assert (left.shape, right.shape) == ((m, 16), (k, 64))
        wanted = left.double().T @ truth @ right.double()
        assert torch.allclose(ours[layer, name].sketch.double(), wanted.flatten(1), rtol=1e-3, atol=1e-6)


def test_sketches_keep_inner_products_on_average():
    """Over many seeds, <C G A^T, C H A^T> is <G, H>; each alone is within chance."""
    rng = np.random.default_rng(0)
    g, h = (torch.from_numpy(rng.normal(size=(12, 20))).float() for _ in range(2))
    h = h + 0.7 * g
    exact, norm = float((g * h).sum()), float(g.square().sum())
    products, norms = [], []
    for seed in range(400):
        left, right = gradients_module._projections(seed, "0:map", 12, 20, torch.device("cpu"))
        a, b = (left.T @ x @ right for x in (g, h))
        products.append(float((a * b).sum()))
        norms.append(float(a.square().sum()))
    assert np.mean(products) == pytest.approx(exact, abs=4 * np.std(products) / 20)
    assert np.mean(norms) == pytest.approx(norm, abs=4 * np.std(norms) / 20)
    assert np.std(norms) / norm < 0.6


def test_maps_layers_and_seeds_have_random_maps_of_their_own():
    drawn = [
        gradients_module._projections(seed, name, 8, 8, torch.device("cpu"))
        for seed, name in ((0, "0:a"), (0, "0:b"), (0, "1:a"), (1, "0:a"))
    ]
    for i, (left, right) in enumerate(drawn):
        for other_left, other_right in drawn[i + 1 :]:
            assert not torch.allclose(left, other_left)
            assert not torch.allclose(right, other_right)
        assert not torch.allclose(left[:, :8], right[:, :8] * 2)
    again = gradients_module._projections(0, "0:a", 8, 8, torch.device("cpu"))
    assert all(torch.equal(x, y) for x, y in zip(again, drawn[0], strict=True))


def test_facts_of_the_weights_go_with_their_gradients():
    given = llama(2)
    for m in given.gradients().modules:
        weight = given.model.get_submodule(f"model.layers.{m.layer}.{m.name}").weight
        assert m.parameters == weight.numel()
        assert m.weight_norm == pytest.approx(weight.norm().item(), rel=1e-6)
    maps = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{x}_proj" for x in "koqv")]
    assert [(m.layer, m.name) for m in given.gradients().modules] == [(i, name) for i in range(4) for name in maps]


def test_a_bias_is_not_part_of_what_a_map_makes_of_its_inputs():
    """<W, G> leaves the bias out, however large it is."""
    model = tiny("bert")
    rng = np.random.default_rng(0)
    made = tuple(Example(tuple(map(int, rng.integers(5, 100, 6))), (True,) * 6, label=i % 2) for i in range(4))
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.bias.normal_(std=2.0)
            layer.output.dense.bias.normal_(std=2.0)
    given = ScoringContext(model, find_stack(model), made, "classification")
    ours = {(m.layer, m.name): m.inner for m in given.gradients().modules}
    for name in ("intermediate.dense", "output.dense"):
        weight = model.get_submodule(f"bert.encoder.layer.2.{name}").weight
        wanted = []
        for example in made:
            loss = -torch.log_softmax(model(torch.tensor([example.input_ids])).logits[0], -1)[example.label]
            wanted.append((torch.autograd.grad(loss, weight)[0] * weight).sum().item())
        assert ours[2, name].tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_the_backward_pass_leaves_requirements_modes_and_gradients_as_they_were():
    given = llama(3)
    given.model.train()
    given.model.model.layers[1].requires_grad_(False)
    required = {n: p.requires_grad for n, p in given.model.named_parameters()}
    given.gradients()
    assert {n: p.requires_grad for n, p in given.model.named_parameters()} == required
    assert all(m.training for m in given.model.modules())
    assert all(p.grad is None for p in given.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in given.model.modules())


def test_dropout_is_off_while_gradients_are_read():
    rng = np.random.default_rng(0)
    made = tuple(Example(tuple(map(int, rng.integers(5, 100, 6))), (True,) * 6, label=i % 2) for i in range(4))
    norms = []
    for training in (False, True):
        model = tiny("bert").train(training)
        assert model.config.hidden_dropout_prob > 0
        given = ScoringContext(model, find_stack(model), made, "classification")
        norms.append([m.squared_norm.tolist() for m in given.gradients().modules])
    assert norms[0] == norms[1]


def test_progress_counts_every_sample_once_and_batches_do_not_matter(monkeypatch):
    done = []
    given = llama(7, progress=done.append)
    together = given.gradients()
    assert sum(done) == 7
    monkeypatch.setattr("layersift.score.gradients.TOKEN_BUDGET", 1)
    done.clear()
    alone = llama(7, progress=done.append).gradients()
    assert done == [1] * 7
    assert torch.equal(together.labelled, alone.labelled)
    for a, b in zip(together.modules, alone.modules, strict=True):
        torch.testing.assert_close(a.squared_norm, b.squared_norm, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(a.inner, b.inner, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(a.sketch, b.sketch, rtol=1e-2, atol=1e-4)


# Weights


def diagonal(*entries):
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def test_spectrum_of_singular_values_written_out():
    """Quartiles 2.25 and 4.75 of 1 ... 5 and 40: the threshold is 2.5 / 1.349 x 2 = 3.706."""
    found = signal_to_noise(diagonal(1, 2, 3, 4, 5, 40))
    assert found == pytest.approx((4 + 5 + 40) / (1 + 2 + 3) / 40)
    wide = torch.cat([diagonal(1, 2, 2.5, 4, 5, 40), torch.zeros(6, 18)], dim=1)  # a ratio of sides of 1 / 4
    assert signal_to_noise(wide) == pytest.approx((4 + 5 + 40) / (1 + 2 + 2.5) / 40)  # 2.625 / 1.349 x 1.5 = 2.92
    assert signal_to_noise(wide.T) == pytest.approx(signal_to_noise(wide))
    assert signal_to_noise(diagonal(3, 3, 3)) == pytest.approx(9 / 1.0 / 3)  # nothing is noise


def test_condition_number_written_out():
    assert condition_number(diagonal(8, 2, 4)) == pytest.approx(4, rel=1e-7)
    assert condition_number(diagonal(8, 0)) == pytest.approx(8e8)
    assert math.isnan(condition_number(diagonal(0, 0)))


@pytest.mark.parametrize("values", [(1, 2, 3, 4), (1, 2, 3, 4, 5), (0, 0, 1, 2, 8)])
def test_hills_exponent_written_out(values):
    """Of the eigenvalues that are not rounding, the upper half, the middle one of an odd number among it."""
    eigenvalues = [float(v) ** 2 for v in values if v]
    tail = eigenvalues[len(eigenvalues) // 2 :]
    wanted = 1 + len(tail) / sum(math.log(v / tail[0]) for v in tail)
    assert hill_exponent(diagonal(*values)) == pytest.approx(wanted, rel=1e-12)


def test_hills_exponent_needs_a_tail():
    assert math.isnan(hill_exponent(diagonal(2, 2, 2)))
    assert math.isnan(hill_exponent(diagonal(0, 0, 5)))  # one eigenvalue is its own tail


def test_experts_are_left_out_however_many_tokens_a_batch_sends_them(monkeypatch):
    """Switch's experts are maps of their own, and a batch of their tokens may divide by its samples by chance."""
    torch.manual_seed(0)
    model = tf.SwitchTransformersForConditionalGeneration(
        tf.SwitchTransformersConfig(
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_heads=4,
            num_layers=2,
            num_decoder_layers=2,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            num_experts=2,
            vocab_size=120,
            decoder_start_token_id=0,
        )
    ).eval()
    rng = np.random.default_rng(0)
    examples = tuple(
        Example(tuple(ids), (True,) * len(ids), target=tuple(rng.integers(3, 120, 3).tolist()))
        for ids in (rng.integers(3, 120, int(rng.integers(3, 9))).tolist() for _ in range(12))
    )
    stack = find_stack(model, "encoder")
    traces = []
    for budget in (1, 24, 400):
        monkeypatch.setattr(gradients, "TOKEN_BUDGET", budget)
        context = ScoringContext(model, stack, examples, "instruction", pad_id=0)
        traces.append(fisher_trace(context))
        assert not [m.name for m in context.gradients().modules if "expert" in m.name]
    assert traces[1] == pytest.approx(traces[0], rel=1e-4)
    assert traces[2] == pytest.approx(traces[0], rel=1e-4)
