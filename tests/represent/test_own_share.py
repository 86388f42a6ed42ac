"""The samples of each of several processes, and what only a part of them knows, without any other process."""

import pytest
import torch
from torch import distributed, nn

from layersift import processes
from layersift.data.examples import Example
from layersift.models.stacks import BlockStack, find_stack
from layersift.represent import causal
from layersift.represent.hooks import evaluation_mode
from layersift.represent.positions import POSITIONS
from layersift.represent.read import Kept, _views
from tiny import tiny


def in_process(monkeypatch, rank, world, gathered=None):
    """As if this were one of ``world`` processes."""

    def gather(found, value):
        assert len(found) == world
        found[:] = [*gathered[:rank], value, *gathered[rank + 1 :]]

    monkeypatch.setattr(distributed, "is_available", lambda: True)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(distributed, "all_gather_object", gather)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_every_sample_has_one_process_and_no_process_has_two_more_than_another(world, count, monkeypatch):
    shares = []
    for rank in range(world):
        in_process(monkeypatch, rank, world)
        shares.append(processes.own_share(count))
    assert sorted(i for part in shares for i in part) == list(range(count))
    assert all(part == sorted(part) for part in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_every_process_has_comes_in_the_order_of_their_ranks(monkeypatch):
    for rank in range(3):
        in_process(monkeypatch, rank, 3, ["a", "b", "c"])
        own = f"own {rank}"
        wanted = ["a", "b", "c"]
        wanted[rank] = own
        assert processes.from_all_processes(own) == wanted
    in_process(monkeypatch, 0, 1)
    assert processes.from_all_processes("alone") == ["alone"]


def test_a_backbone_takes_earlier_tokens_by_one_of_two_names_or_not_at_all():
    class Old(nn.Module):
        def forward(self, input_ids, past_key_values=None):
            return input_ids

    class New(nn.Module):
        def forward(self, input_ids, cache=None):
            return input_ids

    class Neither(nn.Module):
        def forward(self, input_ids):
            return input_ids

    assert [causal.cache_argument(kind()) for kind in (Old, New, Neither)] == ["past_key_values", "cache", None]


def test_a_sample_of_which_a_position_chooses_nothing_keeps_all_of_its_tokens():
    """Whatever is wrong with it, it is not for having been cut."""
    generator = torch.Generator().manual_seed(0)

    def example(*content):
        return Example(tuple(torch.randint(5, 100, (len(content),), generator=generator).tolist()), content)

    long = [example(*[True] * 3, *[False] * 20) for _ in range(6)]  # read at the third token
    empty = example(*[False] * 12)
    model, position = tiny("llama"), POSITIONS["last-content"]
    assert list(position.choose(empty)) == []
    with evaluation_mode(model):
        found = causal.plan_forward(model, find_stack(model), [*long, empty], [position], False, torch.device("cpu"))
    assert [len(e) for e in found.examples] == [3] * 6 + [12]


def test_a_stack_sees_the_samples_own_tokens_unless_it_makes_others():
    def example(length, target=None):
        return Example((7,) * length, (True,) * (length - 1) + (False,), None, target=target)

    text, image = [example(3), example(5)], [Example((), (), patches=4)] * 2
    decoder, language, vision = (BlockStack("b", tower, 2, ()) for tower in ("decoder", "language", "vision"))
    assert _views(text, language, 5) == text
    assert _views(text, vision, 9) == [Example((0,) * 9, (True,) * 9)] * 2  # a vision tower's patches
    assert _views(image, vision, 4) == [Example((0,) * 4, (True,) * 4)] * 2
    written = [example(3, (1, 2)), example(5, (3, 4, 5, 6))]
    assert _views(written, decoder, 4) == [e.decoder_side() for e in written]
    assert _views(written, language, 5) == written


def test_a_process_that_has_read_nothing_hands_on_nothing():
    assert Kept(5)._of([]) == ([], {})
