"""What of rows, batches and settings reaches the model, and what the selection file then says of the data."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from layersift import select_in_memory as module
from layersift.config.recipe import Columns, DataSettings, ModelSource
from layersift.config.select import SelectSettings
from layersift.data.encode import Encoder
from layersift.data.table import Table
from layersift.errors import DataError, SelectionError
from layersift.models.load import LoadedModel
from layersift.models.stacks import BlockStack, find_stack
from layersift.records.selection import LayerScores
from layersift.select.afford import count_within_budget
from layersift.select.choose import select
from layersift.select.published import published_choice, published_examples
from layersift.select.sample import sample_of_batches, sample_table, scoring_contexts
from layersift.select_in_memory import select_layers
from tiny import tiny
from words import tokenizer


def rows_of(count=24):
    return [{"text": f"w{i} w{i % 7} w{i % 5}", "label": i % 2} for i in range(count)]


class Enough(Exception):  # noqa: N818 - nothing is wrong
    pass


def encoder_of(monkeypatch, model, rows, *given, **settings):
    """The encoder and the table that `select_layers` makes of its arguments."""
    found = []

    def stop(table, encoder, chosen):
        found.extend((encoder, table))
        raise Enough

    monkeypatch.setattr("layersift.task.sample_table", stop)
    with pytest.raises(Enough):
        select_layers(model, rows, *given, **settings)
    return found


def test_rows_are_encoded_as_the_arguments_say(monkeypatch):
    words, model = tokenizer(), tiny("bert")
    encoder, table = encoder_of(monkeypatch, model, rows_of(), words)
    assert encoder == Encoder(words, "classification", ("0", "1"), DataSettings.max_length, None, None, False, 96)
    assert (table.kind, table.source, table.columns) == ("classification", "list", Columns(text="text", label="label"))
    encoder, table = encoder_of(monkeypatch, model, rows_of(), words, task="text", max_length=7, chat_template="T")
    assert encoder == Encoder(words, "text", (), 7, "T", None, False, 96)
    assert table.kind == "text"
    processor = SimpleNamespace(tokenizer=words)
    encoder, _ = encoder_of(monkeypatch, model, rows_of(), processor=processor)
    assert (encoder.tokenizer, encoder.processor) == (words, processor)
    other = tokenizer("decoder")
    encoder, _ = encoder_of(monkeypatch, model, rows_of(), other, processor=processor)
    assert (encoder.tokenizer, encoder.processor) == (other, processor)
    named = [{"a": row["text"]} for row in rows_of()]
    encoder, table = encoder_of(monkeypatch, tiny("t5"), named, words, columns={"text": "a"})
    assert encoder.seq2seq
    assert table.columns == Columns(text="a")
    with pytest.raises(DataError, match=r"expected names for some of text, text_pair, label, .*choices, .*, got txt$"):
        select_layers(model, rows_of(), words, columns={"txt": "a"})


def test_the_published_rule_has_no_intervals_and_our_own_one_does():
    model, words = tiny("bert"), tokenizer()
    published = select_layers(model, rows_of(), words, compat="paper")
    assert (published.interval, published.membership, published.confidence) == (None, None, None)
    own = select_layers(model, rows_of(), words)
    assert len(own.interval) == len(own.membership) == 4
    assert own.confidence == 0.95


@pytest.mark.parametrize(("longest", "notice"), [(96, ""), (4, "24 of 24 samples cut to 4 tokens")])
def test_a_sample_says_how_much_of_it_was_cut(longest, notice):
    table = Table(tuple(rows_of()), "here", "text", Columns(text="text"))
    sample = sample_table(table, Encoder(tokenizer(), "text", max_length=longest), SelectSettings())
    assert sample.data.left_out == notice
    assert {len(e) for e in sample.examples} == {min(longest, 5)}
    assert (sample.data.source, sample.data.rows, sample.data.kind) == ("here", 24, "text")


class Loader:
    """Three batches of two samples, padded on the left, the word that ends every sample being a special one."""

    def __init__(self, **more):
        self.more = more

    def __iter__(self):
        for i in range(3):
            ids = torch.tensor([[10 + i, 20 + i, 30 + i, 2], [0, 40 + i, 50 + i, 2]])
            yield {"input_ids": ids, "attention_mask": (ids != 0).long(), **{k: f(ids) for k, f in self.more.items()}}


@pytest.mark.parametrize("at_most", [3, 6, 99])
@pytest.mark.parametrize("kind", ["text", "instruction"])
def test_batches_are_read_in_order_and_described_by_what_they_hold(kind, at_most):
    more = {"labels": lambda ids: torch.where(ids >= 30, ids, -100)} if kind == "instruction" else {}
    words = tokenizer()  # whose [SEP] is 2
    found = sample_of_batches(Loader(**more), words, at_most)
    wanted = [ids for i in range(3) for ids in ((10 + i, 20 + i, 30 + i, 2), (40 + i, 50 + i, 2))][:at_most]
    assert [e.input_ids for e in found.examples] == wanted
    assert [e.content for e in found.examples] == [(*[True] * (len(ids) - 1), False) for ids in wanted]
    responses = [tuple(i >= 30 for i in ids) if kind == "instruction" else None for ids in wanted]
    assert [e.response for e in found.examples] == responses
    assert (found.kind, found.data.left_out) == (kind, "")
    assert (found.data.source, found.data.rows, found.data.kind) == ("Loader", len(wanted), kind)
    assert found.data.fingerprint == "sha256:" + hashlib.sha256(repr(wanted).encode()).hexdigest()
    without = sample_of_batches(Loader(**more), None, at_most)  # no tokenizer tells what is special
    assert all(all(e.content) for e in without.examples)


def test_of_stacks_that_are_scored_together_the_last_one_tells_how_far_it_is():
    model = tiny("t5")
    stack = find_stack(model, "encoder+decoder")
    assert isinstance(stack, BlockStack)
    table = Table(
        tuple({"q": f"w{i}", "a": f"w{i % 7}"} for i in range(9)),
        "here",
        "instruction",
        Columns(prompt="q", response="a"),
    )
    sample = sample_table(table, Encoder(tokenizer(), "instruction", seq2seq=True), SelectSettings())
    loaded, seen = LoadedModel(model, tokenizer(), None, "", None), []
    first, last = scoring_contexts(loaded, stack, sample, SelectSettings(), progress=seen.append)
    assert (first.stack.tower, last.stack.tower) == ("encoder", "decoder")
    assert first.progress is None
    last.progress(3)
    assert seen == [3]
    assert (first.position, last.position) == ("mean", "response-mean")


def test_a_budget_below_one_layer_names_the_first_choice_and_its_price():
    costs, ranking = [5, 6, 7, 8], [3, 0, 1, 2]
    with pytest.raises(SelectionError, match="layer 3, the first choice, would train 8 parameters"):
        count_within_budget(lambda n: tuple(sorted(ranking[:n])), costs, 7)
    assert count_within_budget(lambda n: tuple(sorted(ranking[:n])), costs, 13) == 2


class Recording:
    """A tokenizer of letters that keeps what it was asked."""

    eos_token, eos_token_id = "~", ord("~")

    def __init__(self):
        self.asked = []

    def __call__(self, *texts, truncation, max_length):
        self.asked.append((texts, truncation, max_length))
        return {"input_ids": [ord(letter) for letter in "|".join(texts)][:max_length]}


def test_published_texts_and_instructions_are_cut_to_512_tokens_and_end_before_the_end_of_text():
    words = Recording()
    rows = ({"q": "Why?", "a": "So."}, {"q": "x" * 600, "a": "y"})
    table = Table(rows, "here", "instruction", Columns(prompt="q", response="a"))
    short, long = published_examples(table, SimpleNamespace(tokenizer=words), 9)
    text = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhy?\n\n### Response:So.\n"
    )
    assert "".join(map(chr, short.input_ids)) == text  # the end of text is masked
    assert len(long) == 512
    assert short.content == (True,) * len(short)
    assert [(len(texts), *how) for texts, *how in words.asked] == [(1, True, 512)] * 2
    words = Recording()
    rows = ({"s": "one", "t": 2}, {"s": "x" * 600, "t": "y"})
    pairs = published_examples(
        Table(rows, "here", "text", Columns(text="s", text_pair="t")), SimpleNamespace(tokenizer=words), 9
    )
    assert ["".join(map(chr, e.input_ids))[:9] for e in pairs] == ["one|2", "x" * 9]
    assert [len(e) for e in pairs] == [5, 512]
    assert [(len(texts), *how) for texts, *how in words.asked] == [(2, True, 512)] * 2


def test_the_published_choice_needs_every_layers_score_and_drops_an_encoders_first():
    scores = LayerScores("x", (0.5, 0.9, 0.1, 0.7), {}, (None,) * 4, 8, 0.0)
    assert published_choice(BlockStack("b", "decoder", 4, ()), scores, 2) == (1, 3)
    assert published_choice(BlockStack("b", "encoder", 4, ()), scores, 2) == (0, 3)
    gap = LayerScores("x", (0.5, None, 0.1, 0.7), {1: "constant"}, (None,) * 4, 8, 0.0)
    with pytest.raises(SelectionError, match="needs every layer's importance; layer 1: constant"):
        published_choice(BlockStack("b", "decoder", 4, ()), gap, 2)


def test_the_adapter_and_the_criterion_reach_the_selection(monkeypatch):
    found = {}
    monkeypatch.setattr(module, "select", lambda loaded, sample, chosen, **named: found.update(named))
    adapter = LoraConfig(r=2, target_modules=["query"])
    select_layers(tiny("bert"), rows_of(), tokenizer(), adapter=adapter, criterion="last")
    assert found == {"layer_costs": (), "adapter": adapter, "criterion": "last"}
    select_layers(tiny("bert"), rows_of(), tokenizer(), adapter=adapter, budget_params=10**6)
    assert found == {"layer_costs": [2 * (32 + 32)] * 4, "adapter": adapter, "criterion": None}


def test_progress_counts_every_sample_once():
    table = Table(tuple(rows_of()), "here", "text", Columns(text="text"))
    sample = sample_table(table, Encoder(tokenizer(), "text"), SelectSettings())
    done, model = [], tiny("bert")
    select(LoadedModel(model, tokenizer(), ModelSource("m"), "r"), sample, SelectSettings(), progress=done.append)
    assert sum(done) == 24
