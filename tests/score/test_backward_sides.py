"""Which inputs and outputs of a linear map are tokens in order, and what is made of several runs of one map."""

import hashlib

import pytest
import torch

from layersift.score.gradients import SKETCH, Seen, _by_token, _projections, _whole


@pytest.mark.parametrize(
    ("entering", "leaving", "batch", "wanted"),
    [
        ((6, 3), (6, 2), 2, (3, 3, 2)),  # rows of two samples, one after the other
        ((6, 3), (6, 2), 6, (1, 3, 2)),
        ((5, 3), (5, 2), 2, None),  # an expert's tokens, from anywhere
        ((6, 3), (4, 2), 2, None),
        ((2, 4, 3), (2, 4, 2), 2, (4, 3, 2)),
        ((4, 2, 3), (4, 2, 2), 2, None),  # another batch than ours
        ((4,), (4,), 2, None),
        ((2, 2, 2, 3), (2, 2, 2, 2), 2, None),
    ],
)
def test_sides_are_samples_by_tokens_or_nothing(entering, leaving, batch, wanted):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(entering, generator=generator), torch.randn(leaving, generator=generator)
    found = _by_token(x, y, batch, set())
    if wanted is None:
        assert found is None
        return
    tokens, width, out = wanted
    assert _by_token(x, y, batch, {tokens, 9}) is not None
    assert x.ndim == 3 or _by_token(x, y, batch, {tokens + 1}) is None  # rows of no sample's length
    assert found[0].shape == (batch, tokens, width)
    assert found[1].shape == (batch, tokens, out)
    for sample in range(batch):
        for token in range(tokens):
            place = (sample, token) if x.ndim == 3 else sample * tokens + token
            assert torch.equal(found[0][sample, token], x[place])
            assert torch.equal(found[1][sample, token], y[place])


def test_several_runs_of_a_map_are_one_run_over_all_of_their_tokens():
    generator = torch.Generator().manual_seed(0)

    def run(tokens):
        sides = (torch.randn(2, tokens, width, generator=generator) for width in (3, 4, 4))
        return Seen(*sides, rows=[7, 2], real=torch.randint(0, 2, (2, tokens), generator=generator))

    first, second = run(3), run(5)
    assert _whole([first]) is first
    both = _whole([first, second])
    assert both.rows == [7, 2]
    for side in ("entering", "output", "gradient", "real"):
        parts = torch.cat([getattr(first, side), getattr(second, side)], dim=1)
        assert torch.equal(getattr(both, side), parts)


@pytest.mark.parametrize(("seed", "name"), [(0, "0:attention.query"), (7, "3:mlp")])
def test_a_sketchs_projections_are_those_of_a_seed_written_out_whatever_the_machine(seed, name):
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(sum(byte * 256**place for place, byte in enumerate(digest[:7])))
    rows, columns = SKETCH
    left, right = _projections(seed, name, 5, 6, torch.device("cpu"))
    assert torch.equal(left, torch.randn(5, rows, generator=generator) / rows**0.5)
    assert torch.equal(right, torch.randn(6, columns, generator=generator) / columns**0.5)
