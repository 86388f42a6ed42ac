"""How much a model may differ from a causal one before nothing is left out of its passes any longer."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import LlamaModel

from layersift.data.examples import Example
from layersift.models.stacks import find_stack
from layersift.represent import causal
from layersift.represent.hooks import evaluation_mode
from layersift.represent.positions import POSITIONS
from tiny import read_at, tiny

BEGINNING = (7, 9, 11, 7, 30, 31, 32, 33)


def prompts(count=8, beginning=BEGINNING, response=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        prompt = (*beginning, 40 + i, *torch.randint(5, 110, (2 + i % 3,), generator=generator).tolist())
        ids = (*prompt, *torch.randint(5, 110, (response,), generator=generator).tolist())
        made.append(Example(ids, (True,) * len(ids), (False,) * len(prompt) + (True,) * response))
    return made


class LooksAhead(nn.Module):
    """What a layer computes, and a little of the mean over all of a sample's tokens, those that follow included."""

    def __init__(self, inner, share):
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, x):
        out = self.inner(x)
        return out + self.share * out.norm(dim=-1, keepdim=True).mean() * torch.tanh(x.mean(dim=1, keepdim=True) * 50)


def looking_ahead(share, layer=0, cls=None):
    model = tiny("llama", cls)
    block = find_stack(model).blocks(model)[layer]
    block.mlp = LooksAhead(block.mlp, share)
    return model


def what_is_needed(model, examples, position="last-prompt", post_norm_last=False):
    stack = find_stack(model)
    place = [POSITIONS[position]]
    with evaluation_mode(model):
        return causal.plan_forward(model, stack, examples, place, post_norm_last, torch.device("cpu"))


@pytest.mark.parametrize("beginning", [BEGINNING, ()], ids=["shared", "cut"])
def test_a_model_that_looks_ahead_by_a_hundredth_is_read_whole(beginning):
    examples = prompts(beginning=beginning)
    assert what_is_needed(looking_ahead(0.0), examples) != causal.Forwarded(tuple(examples))
    for share in (0.01, 0.1, 1.0):
        assert what_is_needed(looking_ahead(share), examples) == causal.Forwarded(tuple(examples))


def test_what_a_model_that_looks_ahead_gives_is_read_as_it_gives_it():
    """Which it would not be, were its responses cut off."""
    model, examples = looking_ahead(0.05), prompts()
    stack = find_stack(model)
    got = read_at(model, stack, examples, POSITIONS["last-prompt"], token_budget=1)
    for row, example in enumerate(examples):
        states = {}
        handle = stack.blocks(model)[-1].register_forward_hook(lambda m, a, o, states=states: states.update(last=o))
        with torch.no_grad():
            model(torch.tensor([example.input_ids]))
        handle.remove()
        last = states["last"][0] if isinstance(states["last"], tuple) else states["last"]
        wanted = last[0, example.response.index(True) - 1]
        torch.testing.assert_close(got.states[-1][row], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 3.45e-4), (torch.bfloat16, 0.0884), (torch.float64, 1.49e-8)]
)
def test_states_are_the_same_to_the_root_of_the_models_rounding(dtype, rounding):
    """Relative to each token's own size: half of the digits that the dtype has."""
    states = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states *= torch.tensor([1e-3, 1.0, 1.0, 1e3, 1.0])[None, :, None]
    wanted = states.to(dtype)
    exact = wanted.double()  # in which it can be moved by less than it can hold itself
    for token in range(5):
        for factor, same in ((0.5, True), (2.0, False)):
            moved = exact.clone()
            moved[0, token, 0] += factor * rounding * exact[0, token].norm()
            assert causal.same_states([exact, moved], [wanted, wanted]) is same, (token, factor)
            assert causal.same_states([moved, exact], [wanted, wanted]) is same


def test_equal_states_are_the_same_and_no_numbers_are_not():
    states = torch.ones(1, 3, 4)
    states[0, 1] = 0.0
    assert causal.same_states([states], [states])
    bad = states.clone()
    bad[0, 2, 0] = float("nan")
    assert not causal.same_states([bad], [states])
    assert not causal.same_states([bad], [bad])


@pytest.mark.parametrize("post_norm_last", [False, True])
def test_looking_ahead_in_the_last_layer_alone_shows(post_norm_last):
    examples, settings = prompts(), {"post_norm_last": post_norm_last}
    for share, whole in ((0.0, False), (0.05, True)):
        found = what_is_needed(looking_ahead(share, layer=3, cls=LlamaModel), examples, **settings)
        assert (found == causal.Forwarded(tuple(examples))) == whole


class CountsFromHere(nn.Module):
    """What a layer computes, and something by the place in what it is given: wrong behind what was given before."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 0.1 * torch.sin(torch.arange(x.shape[1]) + 1.0)[None, :, None]


def test_a_causal_model_that_cannot_go_on_behind_a_beginning_is_cut_and_shares_none():
    model, examples = tiny("llama"), prompts()
    model.model.layers[1].mlp = CountsFromHere(model.model.layers[1].mlp)
    found = what_is_needed(model, examples)
    assert found.beginning is None
    assert [len(e) for e in found.examples] == [e.response.index(True) for e in examples]
    assert what_is_needed(tiny("llama"), examples).beginning is not None


@pytest.mark.parametrize("position", ["mean", "last-prompt"])
def test_behind_the_final_norm_of_a_bare_backbone_too(position):
    model, examples = tiny("llama", LlamaModel), prompts()
    assert len(what_is_needed(model, examples, post_norm_last=True).beginning.states) == 6
    got = read_at(model, find_stack(model), examples, POSITIONS[position], post_norm_last=True, token_budget=60)
    for row, example in enumerate(examples):
        with torch.no_grad():
            out = model(torch.tensor([example.input_ids]), output_hidden_states=True)
        for place, state in enumerate((*out.hidden_states[:-1], out.last_hidden_state)):
            wanted = state[0, POSITIONS[position].choose(example)].mean(dim=0)
            torch.testing.assert_close(got.states[place][row], wanted, atol=2e-6, rtol=2e-5)


# What is left out


def test_samples_end_where_the_last_of_the_positions_is_read():
    model, examples = tiny("llama"), prompts()
    found = what_is_needed(model, examples)
    assert [len(e) for e in found.examples] == [e.response.index(True) for e in examples]
    for cut, whole in zip(found.examples, examples, strict=True):
        assert cut.input_ids == whole.input_ids[: len(cut)]
        assert len(cut.content) == len(cut.response) == len(cut)
    with evaluation_mode(model):
        both = causal.plan_forward(
            model,
            find_stack(model),
            examples,
            [POSITIONS["first"], POSITIONS["last-prompt"]],
            False,
            torch.device("cpu"),
        )
    assert both.examples == found.examples
    assert [len(e) for e in what_is_needed(model, examples, "first").examples] == [1] * 8


def test_the_shared_beginning_is_what_all_samples_begin_with_and_leaves_a_token_of_each():
    assert causal._shared_beginning(prompts()) == 8
    assert causal._shared_beginning(prompts(beginning=())) == 0
    same = [Example((5, 6, 7), (True,) * 3), Example((5, 6, 7, 8), (True,) * 4)]
    assert causal._shared_beginning(same) == 3
    model = tiny("llama")
    found = what_is_needed(model, prompts(), "mean")
    assert found.beginning.tokens == 8
    alike = [Example((5, 6, 7, 8, 9), (True,) * 5)] * 4
    assert what_is_needed(model, alike, "mean").beginning.tokens == 4  # the last token of the shortest is left to run
    early = what_is_needed(model, prompts(), "first")  # read at token 0, which has to run
    assert early.beginning is None


@pytest.mark.parametrize(("tail", "cuts"), [(4, False), (6, True)])
def test_five_in_a_hundred_tokens_are_worth_the_trial(tail, cuts):
    """Two samples of a hundred tokens in all, of which the last ``tail`` of one are not read."""
    first = Example(tuple(range(5, 55)), (True,) * 50, (False,) * (50 - tail) + (True,) * tail)
    second = Example(tuple(range(60, 110)), (True,) * 50)
    model = tiny("llama")
    found = what_is_needed(model, [first, second])
    assert len(found.examples[0]) == (50 - tail if cuts else 50)
    assert len(found.examples[1]) == 50


@pytest.mark.parametrize(("shared", "shares"), [(4, False), (6, True)])
def test_and_so_are_five_in_a_hundred_that_are_shared(shared, shares):
    head = tuple(range(5, 5 + shared))
    pair = [Example(head + tuple(range(20 + i, 70 + i - shared)), (True,) * 50) for i in range(2)]
    found = what_is_needed(tiny("llama"), pair, "mean")
    assert (found.beginning is not None) == shares


@pytest.mark.parametrize("change", [{"types": {"token_type_ids": (0,) * 17}}, {"target": (5, 6)}])
def test_what_is_more_than_text_is_read_whole(change):
    examples = prompts()
    examples[0] = dataclasses.replace(examples[0], **change)
    assert what_is_needed(tiny("llama"), examples) == causal.Forwarded(tuple(examples))


def test_a_single_sample_is_not_worth_a_trial():
    one = prompts(1)
    assert what_is_needed(tiny("llama"), one) == causal.Forwarded(tuple(one))


def test_samples_behind_a_beginning_are_put_together_again():
    model, examples = tiny("llama"), prompts()
    beginning = what_is_needed(model, examples, "mean").beginning
    rest = beginning.rest(examples)
    assert [e.input_ids for e in rest] == [e.input_ids[8:] for e in examples]
    assert [len(e.content) for e in rest] == [len(e) for e in rest]
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    inputs = beginning.inputs({"input_ids": torch.zeros(2, 3).long(), "attention_mask": mask})
    assert inputs["attention_mask"].tolist() == [[1] * 11, [1] * 9 + [0] * 2]
    assert len(beginning.states) == 5
    for place in (0, 2, 4):
        states = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(place))
        whole = beginning.whole(place, states)
        assert torch.equal(whole[:, 8:], states)
        assert torch.equal(whole[1, :8], beginning.states[place][0])
