"""Models whose blocks stay on disk are read one block at a time, and give what they give in memory."""

import json

import pytest
import torch

from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.models import ModelSource, load_model
from layersift.represent import by_block
from layersift.represent.positions import get_position
from layersift.represent.read import represent
from test_represent import make_examples
from tiny import tiny


def numbers_in_memory(model):
    return sum(p.numel() for p in model.parameters() if p.device.type != "meta")


@pytest.fixture
def directory(request, llama_directory, bert_directory):
    return {"llama": llama_directory, "bert": bert_directory}[request.param]


@pytest.mark.parametrize(
    ("directory", "kind"), [("llama", "instruction"), ("bert", "classification")], indirect=["directory"]
)
@pytest.mark.parametrize("post_norm_last", [False, True])
def test_one_block_at_a_time_gives_the_same(directory, kind, post_norm_last, monkeypatch):
    examples, positions = make_examples(), [get_position("mean"), get_position("last")]
    settings = {"token_budget": 40, "post_norm_last": post_norm_last}
    whole = load_model(ModelSource(str(directory)), kind, 2).model
    stack = choose_stack(find_stacks(whole))
    wanted = represent(whole, stack, examples, positions, **settings)
    streamed = load_model(ModelSource(str(directory), stream=True), kind, 2).model
    blocks = stack.blocks(streamed)
    assert all(map(by_block.lies_elsewhere, blocks))
    loaded, most = [], [0]
    original = by_block.held

    def held(block):
        loaded.append(blocks.index(block))
        return original(block)

    def look(*_):
        most[0] = max(most[0], sum(not by_block.lies_elsewhere(b) for b in blocks))

    monkeypatch.setattr(by_block, "held", held)
    for block in blocks:
        block.register_forward_pre_hook(look)
    before = numbers_in_memory(streamed)
    found = represent(streamed, stack, examples, positions, **settings)
    assert loaded == list(range(stack.num_layers))  # each once, though there are several batches
    assert most == [1]
    assert numbers_in_memory(streamed) == before
    for name, read in wanted.items():
        for ours, theirs in zip(found[name].states, read.states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)


def test_blocks_that_hand_on_more_than_states_are_refused():
    model = tiny("t5")
    stack = choose_stack(find_stacks(model), "encoder")
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(by_block.ModelError, match="hands on more than hidden states"):
        by_block.pass_by_blocks(model.encoder, stack.blocks(model), [{"input_ids": ids}], lambda *_: None, stop=True)


def test_the_command_line_streams(call, llama_directory, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"what is {i} and {i * 7 % 5}", "response": f"it is {i * 3}"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("select", llama_directory, "--data", data, "--json")
    whole, streamed = (call(*flags, *more, cwd=tmp_path) for more in ((), ("--stream",)))
    assert streamed.returncode == 0, streamed.stderr
    of_whole, of_streamed = (json.loads(shown.stdout)["importance"] for shown in (whole, streamed))
    assert of_streamed == pytest.approx(of_whole, abs=1e-5)
    refused = call(*flags, "--stream", "--criterion", "fisher", cwd=tmp_path)
    assert refused.returncode == 2
    assert "fisher needs the model in memory" in refused.stderr
