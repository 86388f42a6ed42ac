"""What makes kept states valid, which of them are kept, and what of dropout stands in the way."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from layersift.data.examples import Example
from layersift.step import activation_cache
from layersift.step.activation_cache import ActivationCache, cache_key, dropouts, fits_memory, without


def pairs(count=3):
    """Two sentences each, which token types tell apart."""
    return [
        Example((5 + i, 6, 7, 8), (True,) * 4, types={"token_type_ids": (0, 0, 1, 1)}, label=i % 2)
        for i in range(count)
    ]


def key(examples, revision="a", blocks=2, dtype=torch.float32, more=()):
    return cache_key(revision, blocks, (str(dtype), *more), examples)


def test_the_key_knows_the_types_of_tokens():
    whole = pairs()
    moved = [whole[0], replace(whole[1], types={"token_type_ids": (0, 1, 1, 1)}), whole[2]]
    without_any = [whole[0], replace(whole[1], types={}), whole[2]]
    named = [whole[0], replace(whole[1], types={"segment_ids": (0, 0, 1, 1)}), whole[2]]
    assert len({key(e) for e in (whole, moved, without_any, named)}) == 4


def test_the_key_knows_every_token_in_its_place_and_how_many_samples_there_are():
    one, two = pairs(2)
    others = [
        [two, one],
        [one],
        [one, two, two],
        [replace(one, input_ids=(5, 6, 7, 9)), two],
        [replace(one, input_ids=(5, 6, 7)), two],
        [replace(one, input_ids=(5, 6, 7, 8, 6)), replace(two, input_ids=(7, 8))],
    ]
    plain = [Example(ids, (True,) * len(ids)) for ids in ((5, 67), (56, 7), (5,), (67,), (5, 6, 7))]
    others += [[plain[0]], [plain[1]], [plain[2], plain[3]], [plain[4]]]
    assert len({key(e) for e in [[one, two], *others]}) == len(others) + 1


def test_the_key_knows_model_cut_and_dtype_and_no_more():
    examples = pairs()
    keys = {
        key(examples),
        key(examples, revision="b"),
        key(examples, blocks=3),
        key(examples, dtype=torch.bfloat16),
        key(examples, more=("bf16",)),
        key(examples, more=("sdpa",)),
        key(examples, revision="a:2", blocks=2),
    }
    assert len(keys) == 7
    relabelled = [replace(e, label=7, response=(True,) * 4, content=(False,) * 4) for e in examples]
    assert key(relabelled) == key(pairs()) == key(examples)  # what the prefix gives does not depend on them
    many = {"a_ids": (0, 1), "b_ids": (1, 0)}
    turned = dict(reversed(many.items()))
    of = [Example((5, 6), (True,) * 2, types=types) for types in (many, turned)]
    assert key([of[0]]) == key([of[1]])
    assert len(key(examples)) == 24


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_what_is_kept_is_served_without_padding_in_the_form_it_came_in(where, length, tmp_path):
    """Padding is what the batch at hand has, whatever stood there when the states were kept."""
    cache = ActivationCache(tmp_path if where == "disk" else None)
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    cache.begin([7, 2], [4, 2])
    assert not cache.shallowest
    cache.keep((states, *[None] * (length - 1)) if length else states, 2)
    if where == "disk":
        cache = ActivationCache(tmp_path)
    cache.begin([2, 7, 2], [2, 4, 2])
    assert cache.shallowest == 2
    served = cache.serve(torch.full((3, 6, 3), 9.0))
    if length:
        assert type(served) is tuple
        assert len(served) == length
        assert all(part is None for part in served[1:])
        served = served[0]
    wanted = torch.zeros(3, 6, 3)
    wanted[0, :2], wanted[1, :4], wanted[2, :2] = states[1, :2], states[0], states[1, :2]
    assert torch.equal(served, wanted)
    assert cache.served == 1
    cache.begin([2, 3], [2, 2])
    assert not cache.shallowest
    cache.begin([], [])
    assert not cache.shallowest


def test_what_is_kept_once_stays_as_it_is():
    cache = ActivationCache()
    states = torch.ones(1, 2, 3)
    cache.begin([0], [2])
    cache.keep(states, 2)
    states.zero_()  # what was kept is a copy
    cache.keep(states, 2)
    assert torch.equal(cache.serve(torch.empty(1, 2, 3)), torch.ones(1, 2, 3))


def test_a_served_batch_has_the_dtype_of_what_enters():
    cache = ActivationCache()
    cache.begin([0], [2])
    cache.keep(torch.ones(1, 2, 3), 2)
    assert cache.serve(torch.empty(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("limit", "held"), [(3 * 5 * 4, 1), (3 * 5 * 4 - 1, 0), (2 * 3 * 5 * 4, 2)])
def test_a_limit_is_counted_in_bytes_to_the_last_one(limit, held, tmp_path):
    cache = ActivationCache(tmp_path, limit=limit)
    for row in range(3):
        cache.begin([row], [3])
        cache.keep(torch.full((1, 4, 5), float(row)), 2)
    assert len(ActivationCache(tmp_path)._kept) == held
    assert cache.stopped == f"{tmp_path}: its share of the disk is full"


def test_half_of_what_is_free_on_the_disk_is_taken_and_a_quarter_of_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    assert ActivationCache(tmp_path / "not" / "yet" / "there")._left == 500
    assert ActivationCache(tmp_path, limit=7)._left == 7
    assert ActivationCache()._left is None
    examples = [Example((5,) * n, (True,) * n) for n in (3, 5)]  # eight tokens of ten numbers
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        needed = 8 * 10 * size
        for free, fits in ((4 * needed, True), (4 * needed - 1, False)):
            monkeypatch.setattr(activation_cache, "free_memory", lambda free=free: free)
            assert fits_memory(examples, 10, dtype) is fits


def test_probabilities_of_dropout_are_found_wherever_they_are_and_come_back():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_dropout, self.drop_rate, self.dropout_rate = 0.1, 0.2, 0.0
            self.p, self.hidden_dropout = 0.9, 3  # no dropout's, and no probability

    attention, plain, none = Attention(), nn.Dropout(0.3), nn.Dropout(0.0)
    found = dropouts([nn.Sequential(attention, plain), none])
    assert {(id(m), name, value) for m, name, value in found} == {
        (id(attention), "attention_dropout", 0.1),
        (id(attention), "drop_rate", 0.2),
        (id(plain), "p", 0.3),
    }
    restore = without(found)
    assert (attention.attention_dropout, attention.drop_rate, plain.p, attention.p) == (0.0, 0.0, 0.0, 0.9)
    restore()
    assert (attention.attention_dropout, attention.drop_rate, plain.p, attention.p) == (0.1, 0.2, 0.3, 0.9)
