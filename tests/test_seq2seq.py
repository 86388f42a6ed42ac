from dataclasses import replace

import pytest
import torch
import transformers as tf

from layersift.config.recipe import ModelSource
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.data.encode import Encoder, encode_rows
from layersift.data.table import table_of
from layersift.errors import ModelError, SelectionError
from layersift.evaluation.load_run import load_run
from layersift.evaluation.metrics import evaluate, exact_match
from layersift.models.load import load_model
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord, describe
from layersift.records.selection import Selection
from layersift.represent.positions import POSITIONS
from layersift.select.choose import select
from layersift.select.sample import sample_table
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput
from tiny import CONFIGS, read_at, tiny
from words import tokenizer

ROWS = [{"prompt": f"w{i % 7} a {i % 5}", "response": f"b {i % 3}" + " c" * (i % 4)} for i in range(24)]


@pytest.fixture(scope="module")
def table():
    return table_of(ROWS, "rows")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """As many layers on both sides: with others, transformers 5.23 cannot generate (its cache counts the encoder's)."""
    config = CONFIGS["t5"]()
    config.num_decoder_layers = config.num_layers
    config.architectures = ["T5ForConditionalGeneration"]
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("t5")
    tf.T5ForConditionalGeneration(config).save_pretrained(place)
    tokenizer("decoder").save_pretrained(place)
    return str(place)


def bart():
    size = {"encoder_layers": 3, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    torch.manual_seed(0)
    config = tf.BartConfig(
        d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=120, max_position_embeddings=96, **size
    )
    return tf.BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("build", [lambda: tiny("t5"), bart], ids=["t5", "bart"])
@pytest.mark.parametrize(("tower", "layers"), [("encoder", 3), ("decoder", 4)])
def test_representations_of_both_stacks(table, build, tower, layers):
    model = build()
    encoder = Encoder(tokenizer("decoder"), "instruction", seq2seq=True)
    examples = encode_rows(table, encoder, range(8)).examples
    stack = find_stack(model, tower)
    assert stack.num_layers == layers
    position = "response-mean" if tower == "decoder" else "mean"
    ours = read_at(model, stack, examples, POSITIONS[position], token_budget=24)
    for row, example in enumerate(examples):
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([example.input_ids]),
                labels=torch.tensor([example.target]),
                output_hidden_states=True,
            )
        states = output.decoder_hidden_states if tower == "decoder" else output.encoder_hidden_states
        for layer in range(layers):  # behind the last one T5 shows the state after its norm
            torch.testing.assert_close(ours.states[layer][row], states[layer][0].mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_decoder_without_a_head_cannot_read_responses(table):
    examples = encode_rows(table, Encoder(tokenizer("decoder"), "instruction", seq2seq=True), range(8)).examples
    model = tf.T5Model(CONFIGS["t5"]()).eval()
    with pytest.raises(ModelError, match="no head that writes"):
        read_at(model, find_stack(model, "decoder"), examples, POSITIONS["mean"])


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_train_and_judge_an_encoder_decoder(tmp_path, table, directory, tower):
    source = ModelSource(directory)
    loaded = load_model(source, "instruction")
    encoder = Encoder(loaded.tokenizer, "instruction", seq2seq=loaded.seq2seq)
    encoded = encode_rows(table, encoder, range(24))
    settings = SelectSettings(top_n=2, tower=tower)
    selection = select(loaded, sample_table(table, encoder, settings), settings)
    assert selection.position == ("response-mean" if tower == "decoder" else "mean")
    before = evaluate(loaded.model, encoder, encoded.examples, loaded.pad_id).metrics["loss"]
    how = TrainSettings(epochs=4, learning_rate=1e-2, target_modules="all-linear")
    train(loaded, TrainingData(encoder, encoded.examples, describe(table)), selection, how, RunOutput(tmp_path / "run"))
    _, again, encoder = load_run(tmp_path / "run")
    adapted = {n.split(".lora_")[0] for n, _ in again.model.named_parameters() if "lora_" in n}
    blocks = {f"{tower}.block.{i}." for i in selection.selected_layers}
    assert all(any(b in n for b in blocks) for n in adapted)
    found = evaluate(again.model, encoder, encoded.examples, again.pad_id)
    assert found.metrics["loss"] < before
    assert exact_match(again.model, encoder, table, range(6), again.pad_id, 4).samples == 6


def test_encoder_and_decoder_in_one_ranking(tmp_path, table, directory):
    source = ModelSource(directory)
    loaded = load_model(source, "instruction")
    encoder = Encoder(loaded.tokenizer, "instruction", seq2seq=True)
    encoded = encode_rows(table, encoder, range(24))

    def choose(tower):
        settings = SelectSettings(tower=tower)
        sample = sample_table(table, encoder, settings)
        return select(loaded, sample, settings)

    apart = {tower: choose(tower) for tower in ("encoder", "decoder")}
    both = choose("encoder+decoder")
    assert both.importance == apart["encoder"].importance + apart["decoder"].importance
    assert both.position == "mean+response-mean"
    assert both.block_pattern == "encoder.block.{}+decoder.block.{}"
    assert both.ranking == tuple(sorted(range(6), key=lambda i: -both.importance[i]))
    both.save(tmp_path / "both.json")
    both = replace(Selection.load(tmp_path / "both.json"), selected_layers=(1, 3, 5))
    how = TrainSettings(epochs=0.5, target_modules="all-linear", rank=4, ranks={"attention": 2, "5": 3})
    train(loaded, TrainingData(encoder, encoded.examples, describe(table)), both, how, RunOutput(tmp_path / "run"))
    _, again, _ = load_run(tmp_path / "run")
    ranks = {n.split(".lora_")[0]: p.shape[0] for n, p in again.model.named_parameters() if "lora_A" in n}
    at = {n.removeprefix("base_model.model.").split(".layer.")[0] for n in ranks}
    assert at == {"encoder.block.1", "decoder.block.0", "decoder.block.2"}
    for name, rank in ranks.items():
        attention = "SelfAttention" in name or "EncDecAttention" in name
        assert rank == (3 if "decoder.block.2." in name else 2 if attention else 4), name
    other = tmp_path / "other"
    with pytest.raises(SelectionError, match=r"selection is for encoder.block.\{\}\+decoder.block"):
        train(
            load_model(source, "instruction"),
            TrainingData(encoder, encoded.examples, DataRecord()),
            replace(
                both,
                num_layers=7,
                importance=(None,) * 7,
                top_dimension_share=(None,) * 7,
                interval=None,
                membership=None,
            ),
            how,
            RunOutput(other),
        )
    settings = SelectSettings(tower="encoder+decoder", compat="paper")
    sample = sample_table(table, encoder, replace(settings, compat=None))
    with pytest.raises(SelectionError, match="--compat paper knows one stack"):
        select(loaded, sample, settings)


def test_loss_of_an_encoder_decoder_is_that_of_its_targets(table, directory):
    loaded = load_model(ModelSource(directory), "instruction")
    encoder = Encoder(loaded.tokenizer, "instruction", seq2seq=True)
    examples = encode_rows(table, encoder, range(10)).examples
    total = count = 0.0
    for example in examples:
        with torch.no_grad():
            labels = torch.tensor([example.target])
            total += float(loaded.model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss) * len(
                example.target
            )
        count += len(example.target)
    found = evaluate(loaded.model, encoder, examples, loaded.pad_id)
    assert found.metrics["loss"] == pytest.approx(total / count, rel=1e-5)


def test_published_scripts_do_not_know_encoder_decoders(table):
    model = tiny("t5")
    examples = encode_rows(table, Encoder(tokenizer("decoder"), "instruction", seq2seq=True), range(8)).examples
    with pytest.raises(ModelError, match="leave --compat paper away"):
        read_at(model, find_stack(model), examples, POSITIONS["first"], post_norm_last=True)
