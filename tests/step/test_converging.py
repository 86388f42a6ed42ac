"""When the cut moves by what has converged, and what is read to see it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from layersift.config.train import parse_strategy
from layersift.errors import LayersiftError
from layersift.step.strategy import PROBE, Convergence, probe_of, read_grams, similarities
from prefixed import adapted, batch

STRATEGY = parse_strategy("converging:0.9@0.1")
RNG = np.random.default_rng(0)
START = RNG.normal(size=(3, 20, 6))


def grams(states):
    """(M, n, n) of centred states (M, n, d)."""
    centred = states - states.mean(axis=1, keepdims=True)
    return torch.tensor(centred @ centred.transpose(0, 2, 1), dtype=torch.float32)


def debiased_cka(x, y):
    """HSIC_1 by the formula of Song et al. (2012), eq. 5."""

    def hsic(k, l):  # noqa: E741
        n = len(k)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        ones = np.ones(n)
        first = np.trace(k @ l) + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        return (first - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@given(st.integers(0, 2**32 - 1), st.integers(5, 30), st.integers(1, 12))
def test_a_layer_is_held_against_itself_by_debiased_cka(seed, n, width):
    rng = np.random.default_rng(seed)
    before, now = rng.normal(size=(2, 1, n, width))
    now = before + rng.uniform(0, 2) * now
    (found,) = similarities(grams(before).double(), grams(now).double())
    assert found == pytest.approx(debiased_cka(before[0], now[0]), abs=1e-4)
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
    assert similarities(grams(before), grams(3 * before @ turned + 1))[0] == pytest.approx(1, abs=1e-5)


def test_the_cut_moves_past_what_has_converged_up_to_the_first_layer_that_has_not(tmp_path):
    converging = Convergence(STRATEGY, tmp_path, 0, 100)
    other = RNG.normal(size=START.shape)

    def look(step, *changed, last=2):
        states = START.copy()
        for layer in changed:
            states[layer] = other[layer] + step  # another one at each look
            states[layer] *= RNG.normal(size=states[layer].shape)
        converging.look(step, last, lambda: grams(states))

    look(5)
    assert converging._grams is None  # no time to look
    look(10, 0, 1, 2)
    assert converging.lowest == 0  # there is nothing to hold it against
    look(20, 0, 1, 2)
    assert converging.lowest == 0
    look(30, 0)
    look(40, 1, 2)  # 0 has changed since 30
    assert (converging.lowest, converging.followed) == (0, "static")
    look(50, 1, 2)
    assert converging.moves == ((50, 1),)
    look(60, 1)
    look(70, 1)
    assert converging.lowest == 1  # 2 has converged, but lies above what has not
    look(80)
    look(90, 0)  # it does not go back
    assert converging.moves == ((50, 1),)
    assert converging.followed == "freezing:1@0.5"


def test_the_last_adapted_layer_is_always_trained(tmp_path):
    converging = Convergence(STRATEGY, tmp_path, 0, 100)
    for step in (10, 20):
        converging.look(step, 1, lambda: grams(START))
    assert converging.lowest == 1


def test_what_is_followed_moves_at_the_very_steps(tmp_path):
    for steps in (7, 63, 504, 999, 100_003):
        converging = Convergence(STRATEGY, tmp_path, 0, steps)
        for step in range(1, steps, max(1, steps // 50)):
            converging.moves = ((step, 1),)
            found = parse_strategy(converging.followed)
            assert found.trained(range(3), 3, step - 1, steps) == (0, 1, 2)
            assert found.trained(range(3), 3, step, steps) == (1, 2)


def test_a_resumed_training_knows_its_last_look_and_forgets_later_ones(tmp_path):
    first = Convergence(STRATEGY, tmp_path, 0, 100)
    for step in (10, 20, 30):
        first.look(step, 2, lambda: grams(START))
    again = Convergence(STRATEGY, tmp_path, 25, 100)
    assert again.moves == ((20, 2),)
    assert torch.equal(again._grams, grams(START))
    assert not (tmp_path / "converging-30.safetensors").exists()
    with safe_open(tmp_path / "converging-20.safetensors", "pt") as file:
        assert set(file.keys()) == {"grams"}
    (tmp_path / "converging-20.safetensors").write_bytes(b"cut short")
    with pytest.raises(LayersiftError, match=r"converging-20.safetensors: .* cannot go on without its last look"):
        Convergence(STRATEGY, tmp_path, 21, 100)
    Convergence(STRATEGY, tmp_path, 0, 100)  # another training
    assert not list(tmp_path.glob("converging-*"))


def test_the_probe_is_taken_evenly_from_all_rows():
    seen = []

    def collate(rows):
        seen.extend(rows)
        torch.rand(1)
        return {"input_ids": torch.tensor(rows)[:, None], "labels": torch.tensor(rows), "example_rows": 1}

    class Model(torch.nn.Module):
        def forward(self, input_ids, labels=None):
            return input_ids

    loader = SimpleNamespace(dataset=list(range(1000)), collate_fn=collate)
    before = torch.random.get_rng_state()
    batches = probe_of(loader, Model(), 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(seen) == PROBE
    assert (seen[0], seen[-1]) == (0, 999)
    assert max(np.diff(seen)) <= 17
    assert [set(b) for b in batches] == [{"input_ids"}] * 10
    with pytest.raises(LayersiftError, match="these are streamed"):
        probe_of(SimpleNamespace(dataset=iter([]), collate_fn=collate), Model(), 7)


def test_what_is_read_are_the_means_behind_each_block_over_the_tokens_attended_to():
    model = adapted("llama", range(4))
    model.train()
    plain, inputs = model.get_base_model(), {k: v for k, v in batch().items() if k != "labels"}
    found = read_grams(plain, list(plain.model.layers), [inputs, inputs])
    assert model.training
    plain.eval()
    states = []
    hooks = [b.register_forward_hook(lambda m, a, output: states.append(output)) for b in plain.model.layers]
    with torch.no_grad():
        plain(**inputs)
    for hook in hooks:
        hook.remove()
    mask = inputs["attention_mask"].double()[..., None]
    for layer, output in enumerate(states):
        hidden = (output[0] if isinstance(output, tuple) else output).double()
        means = ((hidden * mask).sum(1) / mask.sum(1)).repeat(2, 1).numpy()
        expected = grams(means[None])[0]
        torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=1e-4)
