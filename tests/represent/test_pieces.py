"""The pieces of a pass, each by itself: positions and weights, what blocks exchange, rows that are kept, budgets."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from layersift.data.examples import Example
from layersift.errors import DataError, ModelError
from layersift.measures import TOKEN_MEASURES
from layersift.models.stacks import find_stack, no_cache
from layersift.processes import own_share
from layersift.represent import hooks, read
from layersift.represent.causal import Forwarded
from layersift.represent.hooks import (
    Done,
    Form,
    entering_states,
    evaluation_mode,
    execution_device,
    leaving_states,
    read_blocks,
)
from layersift.represent.positions import POSITIONS, read_position, token_weights
from layersift.represent.read import (
    Batching,
    Kept,
    Reader,
    Representations,
    _halves,
    affordable_tokens,
    out_of_memory,
    represent,
)
from tiny import tiny
from tiny_types import tiny_model


def sample(content, response=None):
    return Example(tuple(range(5, 5 + len(content))), tuple(map(bool, content)), response)


# Positions


@pytest.mark.parametrize(
    ("position", "tokens"),
    [
        ("first", [0]),
        ("last", [5]),
        ("last-content", [3]),
        ("last-prompt", [1]),
        ("mean", [0, 1, 2, 3, 4, 5]),
        ("response-mean", [2, 4]),
    ],
)
def test_tokens_of_each_position(position, tokens):
    example = sample((0, 1, 0, 1, 0, 0), (False, False, True, False, True, False))
    assert POSITIONS[position].choose(example) == tokens


@pytest.mark.parametrize(("begins", "token"), [(0, 4), (1, 4), (2, 1), (3, 2), (4, 3)])
def test_a_response_that_begins_at_the_second_token_has_no_prompt(begins, token):
    example = sample((1,) * 5, tuple(i >= begins for i in range(5)))
    assert POSITIONS["last-prompt"].choose(example) == [token]


def test_weights_average_the_chosen_tokens_of_each_sample():
    examples = [sample((1, 1, 1), (False, True, True)), sample((1,) * 5, (True, False, True, True, True))]
    assert token_weights(POSITIONS["response-mean"], examples).tolist() == [
        [0.0, 0.5, 0.5, 0.0, 0.0],
        [0.25, 0.0, 0.25, 0.25, 0.25],
    ]
    with pytest.raises(DataError, match="a sample of 2 tokens has none at position 'last-content'"):
        token_weights(POSITIONS["last-content"], [sample((0, 0))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_averaged_in_float32_and_what_is_not_chosen_may_be_anything(dtype):
    hidden = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden[0, 3], hidden[1, 0] = math.inf, math.nan
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.25, 0.5]])
    found = read_position(hidden, weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], hidden[0, :2].float().mean(dim=0))
    torch.testing.assert_close(found[1], (hidden[1, 1].float() + hidden[1, 2].float()) / 4 + hidden[1, 3].float() / 2)


def test_single_tokens_are_read_exactly():
    hidden = torch.full((2, 3, 2), math.inf, dtype=torch.bfloat16)
    hidden[0, 1], hidden[1, 2] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = read_position(hidden, weights)
    assert found.tolist() == [[1.0, 2.0], [3.0, -4.0]]
    assert found.dtype == torch.float32


# What blocks exchange


def test_hidden_states_are_found_by_name_first_and_by_form_else():
    states, mask, other = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).long(), torch.ones(1, 2, 3)
    assert entering_states((mask, states), {}) is states
    assert entering_states((other,), {"hidden_states": states}) is states
    assert entering_states((), {"x": torch.zeros(2, 3), "y": states}) is states
    with pytest.raises(ModelError, match="received no hidden states"):
        entering_states((mask, torch.zeros(2, 3)), {"x": None})


def test_hidden_states_that_a_block_returns():
    states = torch.zeros(1, 2, 3)
    assert leaving_states(states) is leaving_states((states, None)) is leaving_states([states]) is states
    for wrong in (torch.zeros(2, 3), (None, states), {"x": states}):
        with pytest.raises(ModelError, match="returned no hidden states"):
            leaving_states(wrong)


def test_the_form_of_an_output_is_put_on_again():
    states = torch.zeros(1, 2, 3)
    for output in (states, (states,), (states, None, None)):
        again = Form.of(output).put(states)
        assert type(again) is type(output)
        assert again is states if torch.is_tensor(output) else again == output
    assert Form.of((states, states)) is None


def blocks_of(model):
    return find_stack(model).blocks(model)


def hooks_of(model):
    return [(len(b._forward_hooks), len(b._forward_pre_hooks)) for b in blocks_of(model)]


def ids_of(model, rows=2):
    return torch.randint(5, 100, (rows, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stop", [True, False])
def test_reading_sees_every_state_in_order_and_ends_behind_the_last_block(stop):
    model, seen = tiny("llama"), []
    with torch.no_grad():
        states = model(ids_of(model), output_hidden_states=True).hidden_states
        before = hooks_of(model)  # transformers' own
        with read_blocks(blocks_of(model), lambda place, hidden: seen.append((place, hidden)), stop):
            if stop:
                with pytest.raises(Done):
                    model(ids_of(model))
            else:
                model(ids_of(model))
    assert [place for place, _ in seen] == [0, 1, 2, 3, 4]
    for (_, ours), theirs in zip(seen[:-1], states[:-1], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.allclose(model.model.norm(seen[-1][1]), states[-1])
    assert hooks_of(model) == before


def test_evaluation_mode_is_without_graph_and_gives_each_module_its_own_mode_back():
    model = tiny("bert").train()
    model.bert.encoder.layer[1].eval()
    modes = [m.training for m in model.modules()]

    def fail():
        with evaluation_mode(model):
            assert not any(m.training for m in model.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_a_cache_is_turned_off_where_there_is_one():
    assert no_cache(tiny("llama")) == {"use_cache": False}
    assert no_cache(nn.Linear(2, 2)) == {}
    assert execution_device(nn.Linear(2, 2)) == torch.device("cpu")
    empty = nn.Linear(2, 2, device="meta")
    assert execution_device(empty) == torch.device("cpu")
    empty._hf_hook = SimpleNamespace(execution_device="cuda:1")
    assert execution_device(empty) == torch.device("cuda:1")


def test_block_by_block_gives_what_a_whole_pass_gives():
    """Also of a model in memory, with several batches, to the last block and to the end."""
    model = tiny("llama")
    batches = [{"input_ids": ids_of(model, rows)} for rows in (2, 3)]
    with torch.no_grad():
        wanted = [model.model(**b, output_hidden_states=True) for b in batches]
        before = hooks_of(model)
        seen = {}

        def read(number, place, hidden):
            seen[number, place] = hidden.clone()

        outputs = hooks.pass_by_blocks(model.model, blocks_of(model), batches, read, stop=False)
        assert list(seen) == [(0, 0), (0, 1), (1, 0), (1, 1)] + [(n, p) for p in (2, 3, 4) for n in (0, 1)]
        assert len(outputs) == 2
        for number, output in enumerate(wanted):
            for place in range(4):
                torch.testing.assert_close(seen[number, place], output.hidden_states[place])
            torch.testing.assert_close(outputs[number].last_hidden_state, output.last_hidden_state)
        assert hooks.pass_by_blocks(model.model, blocks_of(model), batches, read, stop=True) == []
    assert not any("forward" in vars(b) for b in blocks_of(model))
    assert hooks_of(model) == before


# Rows that are kept


def test_a_reader_measures_each_state_against_the_one_before():
    examples = [sample((1, 1, 1), (False, True, True)), sample((1, 1), (False, True))]
    positions = [POSITIONS["mean"], POSITIONS["response-mean"]]
    measures = [TOKEN_MEASURES["cosine"], TOKEN_MEASURES["update-norm"]]
    reader = Reader(positions, measures, lambda tokens: examples)
    states = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    states[:, 1, 2] = math.nan  # padding
    for state in states:
        reader.read(state)
    chosen = {"mean": [[0, 1, 2], [0, 1]], "response-mean": [[1, 2], [1]]}
    for name, tokens in chosen.items():
        assert len(reader.rows[name]) == 3
        for place in range(3):
            for row, ts in enumerate(tokens):
                torch.testing.assert_close(reader.rows[name][place][row], states[place, row, ts].mean(dim=0))
        for measure in measures:
            assert len(reader.between[name][measure.name]) == 2
            for layer in range(2):
                for row, ts in enumerate(tokens):
                    each = measure.between(states[layer, row, ts], states[layer + 1, row, ts])
                    torch.testing.assert_close(reader.between[name][measure.name][layer][row], each.mean())
    last = torch.ones(2, 3, 4)
    reader.replace_last(last)
    assert torch.equal(reader.rows["mean"][-1], torch.ones(2, 4))
    torch.testing.assert_close(reader.rows["mean"][1][0], states[1, 0].mean(dim=0))


def test_rows_of_batches_are_put_where_their_samples_are():
    kept = Kept(5)
    rows = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    values = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    for batch in ([3, 0], [4], [1, 2]):
        kept.put(batch, [rows[0, batch], rows[1, batch]], {"cosine": [values[0, batch]]})
    kept.merge(range(5))
    assert [torch.equal(ours, theirs) for ours, theirs in zip(kept.states, rows, strict=True)] == [True, True]
    assert torch.equal(kept.between["cosine"], values)


def test_some_samples_of_representations_and_two_of_them_joined():
    states = tuple(torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    values = torch.randn(2, 5, generator=torch.Generator().manual_seed(9))
    whole = Representations(states, torch.float32, 1.5, 40, {"cosine": values})
    assert whole.num_layers == 2
    rows = torch.tensor([4, 1])
    some = whole.of(rows)
    assert all(torch.equal(a, b[rows]) for a, b in zip(some.states, states, strict=True))
    assert torch.equal(some.between["cosine"], values[:, rows])
    both = some.joined(whole)
    assert all(torch.equal(a, torch.cat([b[rows], b])) for a, b in zip(both.states, states, strict=True))
    assert torch.equal(both.between["cosine"], torch.cat([values[:, rows], values], dim=1))
    assert (both.seconds, both.tokens) == (3.0, 80)


def test_a_batch_is_halved_and_the_larger_half_comes_first():
    assert [_halves(list(range(n))) for n in (1, 2, 3, 5)] == [
        [[0]],
        [[0], [1]],
        [[0, 1], [2]],
        [[0, 1, 2], [3, 4]],
    ]


@pytest.mark.usefixtures("no_trial")
def test_a_batch_that_does_not_fit_is_read_in_halves(monkeypatch):
    model, sizes = tiny("llama"), []
    stack = find_stack(model)
    made = [sample((1,) * (4 + i % 3)) for i in range(7)]
    wanted = represent(model, stack, made, POSITIONS["mean"])["mean"]
    done = []

    def small(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        sizes.append(len(states))
        if len(states) > 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr("layersift.represent.read.plan_forward", lambda b, s, examples, *_: Forwarded(tuple(examples)))
    handle = stack.blocks(model)[0].register_forward_pre_hook(small, with_kwargs=True)
    found = represent(model, stack, made, POSITIONS["mean"], batching=Batching(token_budget=100), progress=done.append)[
        "mean"
    ]
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert done == [2, 2, 2, 1]
    for ours, theirs in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    handle.remove()


@pytest.mark.parametrize(
    ("error", "samples", "tries"),
    [(torch.OutOfMemoryError, 1, [1]), (torch.OutOfMemoryError, 2, [2, 1]), (RuntimeError, 2, [2])],
)
@pytest.mark.usefixtures("no_trial")
def test_what_halving_does_not_help_is_raised(error, samples, tries):
    model, sizes = tiny("bert"), []

    def fail(module, args, kwargs):
        sizes.append(len(args[0]))
        assert len(sizes) < 5, "it halves for ever"
        raise error("no")

    stack = find_stack(model)
    stack.blocks(model)[0].register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(ModelError, match=r"samples of up to 4 tokens \(no\)") as raised:
        represent(model, stack, [sample((1,) * 4)] * samples, POSITIONS["mean"])
    assert type(raised.value.__cause__) is error
    assert sizes == tries


def test_blocks_that_run_twice_are_refused():
    model = tiny("llama")
    stack = find_stack(model)
    model.model.layers[1] = model.model.layers[0]  # the same block in two places
    with pytest.raises(ModelError, match=r"blocks 0 to 1 run 2 times in a forward pass.*--criterion fisher"):
        represent(model, stack, [sample((1,) * 4)], POSITIONS["mean"])


def test_which_errors_say_that_memory_ran_out():
    assert out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert own_share(3) == [0, 1, 2]


# Budgets


@pytest.mark.parametrize(
    ("free", "budget"),
    [
        # 4 bytes x (4 x 48 + 8 x 16): 1280 bytes a token, of a quarter of what is free
        (4096 * 1280 * 4, 4096),
        (4096 * 1280 * 4 - 8, 2048),
        (2048 * 1280 * 4, 2048),
        (512 * 1280 * 4, 512),
        (100, 512),
        (math.inf, 4096),
    ],
)
def test_the_budget_is_the_largest_power_of_two_that_a_quarter_of_the_memory_holds(free, budget, monkeypatch):
    monkeypatch.setattr(read, "free_memory", lambda: free)
    block = nn.Sequential(nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(48, 16))
    assert affordable_tokens(block, torch.device("cpu")) == budget


def test_the_budget_counts_the_bytes_of_the_weights(monkeypatch):
    block = nn.Sequential(nn.Linear(16, 48), nn.Linear(48, 16))
    monkeypatch.setattr(read, "free_memory", lambda: 2048 * 1280 * 4)
    assert affordable_tokens(block, torch.device("cpu")) == 2048
    assert affordable_tokens(block.to(torch.bfloat16), torch.device("cpu")) == 4096
    assert affordable_tokens(block.double(), torch.device("cpu")) == 1024


def test_a_packed_weight_is_counted_by_the_sides_that_its_module_names(monkeypatch):
    packed = nn.Module()
    packed.weight = nn.Parameter(torch.zeros(384, 1, dtype=torch.uint8), requires_grad=False)
    packed.in_features, packed.out_features = 16, 48
    monkeypatch.setattr(read, "free_memory", lambda: 1024 * 1280 * 4)
    assert affordable_tokens(nn.Sequential(packed), torch.device("cpu")) == 1024


def test_free_memory_is_what_the_system_tells(monkeypatch):
    told = "MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:     7 kB\n"
    monkeypatch.setattr(read.Path, "read_text", lambda self: told)
    assert read.free_memory() == 7 * 1024
    monkeypatch.setattr(read.Path, "read_text", lambda self: "MemTotal:  100 kB\n")
    assert read.free_memory() == math.inf


@pytest.mark.parametrize(
    ("model_type", "tokens_first"), [("gemma3n_text", (1, 2, 0, 3)), ("deepseek_v4", (0, 1, 2, 3))]
)
def test_several_streams_of_hidden_states_are_read_side_by_side(model_type, tokens_first):
    model = tiny_model(model_type, "instruction")
    blocks, ids = find_stack(model).blocks(model), torch.randint(3, 110, (2, 7))
    wanted, found = [], []
    handle = blocks[1].register_forward_hook(lambda m, a, out: wanted.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad(), read_blocks(blocks, lambda place, hidden: found.append(hidden), stop=False):
        model(ids, use_cache=False)
    handle.remove()
    assert len(found) == len(blocks) + 1
    assert {tuple(f.shape) for f in found} == {found[0].shape}
    streams = wanted[0].permute(*tokens_first)  # batch, tokens, streams, width
    assert streams.shape[:2] == ids.shape
    for index in range(streams.shape[2]):
        width = streams.shape[3]
        assert torch.equal(found[2][..., index * width : (index + 1) * width], streams[:, :, index])
