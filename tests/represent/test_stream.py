"""Models whose blocks stay on disk are read one block at a time, and give what they give in memory."""

import json

import pytest
import torch
import transformers as tf
from peft import LoraConfig

from layersift.config.recipe import ModelSource
from layersift.measures import TOKEN_MEASURES
from layersift.models.load import _blocks_on_disk, load_model
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.represent import hooks
from layersift.represent.positions import get_position
from states import make_examples
from tiny import SIZE, read_all, tiny


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
    stack = find_stack(whole)
    wanted = read_all(whole, stack, examples, positions, **settings)
    streamed = load_model(ModelSource(str(directory), stream=True), kind, 2).model
    blocks = stack.blocks(streamed)
    assert all(map(hooks.is_offloaded, blocks))
    loaded, most = [], [0]
    original = hooks.hold_weights

    def held(block):
        loaded.append(blocks.index(block))
        return original(block)

    def look(*_):
        most[0] = max(most[0], sum(not hooks.is_offloaded(b) for b in blocks))

    monkeypatch.setattr(hooks, "hold_weights", held)
    for block in blocks:
        block.register_forward_pre_hook(look)
    before = numbers_in_memory(streamed)
    found = read_all(streamed, stack, examples, positions, **settings)
    assert loaded == list(range(stack.num_layers))  # each once, though there are several batches
    assert most == [1]
    assert numbers_in_memory(streamed) == before
    for name, read in wanted.items():
        for ours, theirs in zip(found[name].states, read.states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)


@pytest.fixture
def offloaded(tmp_path):
    """The same model with its blocks on disk until they are used."""

    def leave_on_disk(model):
        model.save_pretrained(tmp_path / "model")
        source = ModelSource(str(tmp_path / "model"))
        where = _blocks_on_disk(
            source, "classification" if hasattr(model, "classifier") else "text", torch.device("cpu")
        )
        return type(model).from_pretrained(source.name, dtype="auto", **where).eval()

    return leave_on_disk


@pytest.mark.parametrize("more", [{}, {"conv_kernel_size": 3}])
def test_what_a_model_does_between_its_blocks_is_done_once(more, offloaded):
    torch.manual_seed(0)
    config = tf.DebertaV2Config(
        **SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, **more
    )
    model = tf.DebertaV2ForSequenceClassification(config).eval()
    stack, examples = find_stack(model), make_examples()
    wanted = read_all(model, stack, examples, get_position("mean"), token_budget=40)["mean"]
    found = read_all(offloaded(model), stack, examples, get_position("mean"), token_budget=40)["mean"]
    for ours, theirs in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)


def test_batches_that_do_not_fit_are_halved_and_measures_stay_the_same(offloaded, monkeypatch):
    model, examples = tiny("llama"), make_examples(16)
    stack, position = find_stack(model), get_position("mean")
    measures = [TOKEN_MEASURES["cosine"]]
    wanted = read_all(model, stack, examples, position, measures=measures)["mean"]
    sizes, original = [], hooks.pass_by_blocks

    def small(backbone, blocks, batches, read, stop):
        sizes.append([len(b["input_ids"]) for b in batches])
        if max(sizes[-1]) > 4:
            raise torch.OutOfMemoryError
        return original(backbone, blocks, batches, read, stop)

    monkeypatch.setattr("layersift.represent.read.pass_by_blocks", small)
    found = read_all(offloaded(model), stack, examples, position, measures=measures)["mean"]
    assert sizes == [[16], [8, 8], [4, 4, 4, 4]]
    torch.testing.assert_close(found.between["cosine"], wanted.between["cosine"], atol=2e-6, rtol=2e-5)


def test_a_block_that_fails_to_load_is_left_as_it_was(offloaded):
    model = offloaded(tiny("llama"))
    block = model.model.layers[0]
    ours = [m._hf_hook for m in block.modules() if getattr(getattr(m, "_hf_hook", None), "offload", False)]
    assert len(ours) > 3

    load = ours[3].pre_forward

    def fail(module, *args, **kwargs):
        load(module)
        raise OSError("disk")

    ours[3].pre_forward = fail
    with pytest.raises(OSError, match="disk"), hooks.hold_weights(block):
        pass
    assert all(hook.offload for hook in ours)
    assert all(p.device.type == "meta" for p in block.parameters())


def test_an_offloaded_model_is_planned_as_any_other(offloaded):
    model = tiny("llama")
    stack, config = find_stack(model), LoraConfig(target_modules=["q_proj"])
    size = {"batch_size": 2, "tokens": 16}
    plans = [Planner(m, stack, config).step((2, 3), StepSize("instruction", **size)) for m in (model, offloaded(model))]
    assert plans[0] == plans[1]


def test_blocks_that_hand_on_more_than_states_are_refused():
    model = tiny("t5")
    stack = find_stack(model, "encoder")
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(hooks.ModelError, match="hands on more than hidden states"):
        hooks.pass_by_blocks(model.encoder, stack.blocks(model), [{"input_ids": ids}], lambda *_: None, stop=True)


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
