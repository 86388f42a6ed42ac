"""Rows that come again, streams, and ready batches of every kind of labels: what is read, and what is said of it."""

import itertools

import datasets
import pytest
import torch
import transformers as tf

from layersift import select_layers
from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.select import SelectSettings
from layersift.data.table import table_of
from layersift.errors import DataError, ModelError
from layersift.models.load import load_model
from layersift.task import Task
from tiny import tiny
from words import tokenizer

ROWS = [{"prompt": f"w{i} w{i + 2} w{2 * i % 30}", "completion": f"w{i % 7} w{i % 5}"} for i in range(24)]
WORDS = tokenizer("decoder", chat=True)


def test_rows_that_come_again_change_nothing_and_are_counted(llama_directory):
    once = select_layers(tiny("llama"), ROWS, WORDS)
    again = select_layers(tiny("llama"), ROWS * 6, WORDS)
    assert again.importance == pytest.approx(once.importance)
    assert again.num_samples == once.num_samples == 24
    loaded = load_model(ModelSource(str(llama_directory)), "instruction")
    table = table_of([*ROWS, *ROWS[:5], {**ROWS[0], "id": 7}], "rows")
    sample = Task.around(loaded, DataSettings("rows"), table).sample(SelectSettings())
    assert len(sample.examples) == 24
    assert sample.data.left_out == "6 rows that say what another says left out"
    with pytest.raises(DataError, match=r"3 distinct samples .* at least 8 are needed \(9 of 12 rows say"):
        select_layers(tiny("llama"), ROWS[:3] * 4, WORDS)


def test_texts_that_the_limit_makes_alike_are_one():
    rows = [{"text": f"w1 w2 w3 w{i} w{i + 1}", "label": i % 2} for i in range(20)]
    with pytest.raises(DataError, match="1 distinct samples"):
        select_layers(tiny("bert"), rows, tokenizer(), max_length=5)


def endless():
    yield from ROWS
    number = 0
    while True:
        number += 1
        yield {"prompt": f"w{number % 40} w{number // 40 % 40} w{number // 1600}", "completion": "w1"}


def test_of_a_stream_its_first_rows_are_read(caplog):
    found = select_layers(tiny("llama"), endless(), WORDS, max_samples=16)
    assert found.num_samples == 16
    assert "a stream: the sample is drawn from its first 128 rows" in caplog.text
    assert select_layers(tiny("llama"), iter(ROWS), WORDS).mask == select_layers(tiny("llama"), ROWS, WORDS).mask


def tokenised():
    rows = []
    for row in ROWS:
        asked, said = WORDS(row["prompt"])["input_ids"], [*WORDS(row["completion"])["input_ids"], 7]
        rows.append({"input_ids": asked + said, "labels": [-100] * len(asked) + said})
    return rows


def test_tokenised_rows_are_batches_of_one():
    collate = tf.DataCollatorForSeq2Seq(WORDS, padding=True)
    batches = torch.utils.data.DataLoader(tokenised(), batch_size=5, collate_fn=collate)
    wanted = select_layers(tiny("llama"), batches, WORDS)
    for data in (tokenised(), datasets.Dataset.from_list(tokenised()), iter(tokenised())):
        found = select_layers(tiny("llama"), data, WORDS)
        assert (found.position, found.data.kind) == ("response-mean", "instruction")
        assert found.importance == pytest.approx(wanted.importance)


def batch(**more):
    ids = torch.randint(5, 100, (12, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, **more}]


def test_of_batches_distinct_samples_are_read_until_there_are_enough(caplog):
    twice = [row for row in tokenised() for _ in range(2)]
    found, once = (select_layers(tiny("llama"), data, WORDS, max_samples=12) for data in (twice, tokenised()))
    assert found.num_samples == 12
    assert found.importance == pytest.approx(once.importance)
    assert found.data.left_out == "11 of 23 samples that say what another says left out"
    assert found.data.left_out in caplog.text
    given = iter(tokenised())
    select_layers(tiny("llama"), given, WORDS, max_samples=12)
    assert len(list(given)) == 12  # no row more than is needed was taken
    few = select_layers(tiny("llama"), itertools.cycle(tokenised()), WORDS, max_samples=64)  # it never ends
    assert few.num_samples == 24


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("llama", {"inputs_embeds": torch.ones(12, 6, 8)}, "inputs_embeds: of ready batches input_ids"),
        ("llama", {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, "position_ids that do not count .* unpacked"),
        ("llava", {"pixel_values": torch.ones(12, 3, 8, 8)}, "pixel_values: of ready batches"),
    ],
)
def test_what_the_model_would_read_and_we_would_not_is_refused(model, more, said):
    with pytest.raises(DataError, match=said):
        select_layers(tiny(model), batch(**more))


def test_positions_that_say_nothing_more_change_nothing():
    wanted = select_layers(tiny("llama"), batch())
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]] * 12)
    padded = select_layers(tiny("llama"), batch(attention_mask=mask))
    for given, found in ((torch.arange(6), wanted), (torch.tensor([[1, 1, 0, 1, 2, 3]] * 12), padded)):
        more = {"attention_mask": mask} if found is padded else {}
        assert select_layers(tiny("llama"), batch(position_ids=given, **more)).importance == found.importance


def test_an_encoder_decoders_labels_are_what_it_writes():
    targets = torch.randint(5, 100, (12, 6), generator=torch.Generator().manual_seed(1))  # as long as the inputs
    found = select_layers(tiny("t5"), batch(labels=targets), tower="decoder", criterion="fisher")
    assert found.data.kind == "instruction"
    longer = torch.cat([targets, torch.full((12, 3), -100)], 1)
    again = select_layers(tiny("t5"), batch(labels=longer), tower="decoder", criterion="fisher")
    assert again.importance == pytest.approx(found.importance)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.long, "classification"), (torch.float32, "regression")])
def test_a_heads_labels_are_classes_or_numbers(dtype, kind):
    labels = (torch.arange(12) % 2).to(dtype)
    assert select_layers(tiny("bert"), batch(labels=labels)).data.kind == kind


@pytest.mark.parametrize(
    ("model", "more", "settings", "said"),
    [
        ("bert", {"labels": torch.ones(12, 6)}, {}, r"multi-label\) are not supported"),
        ("llama", {"labels": torch.ones(12, 4, dtype=torch.long)}, {}, "no labels of LlamaForCausalLM: tokens of the"),
        ("llama", {"start_positions": torch.ones(12)}, {}, "question answering is not supported; leave"),
        ("llama", {}, {"max_length": 4}, "max_length is of rows of text; batches are tokenised already"),
        ("llama", {}, {"columns": {"text": "a"}}, "columns is of rows of text"),
        ("bert", {"labels": torch.arange(12) % 2}, {"task": "text"}, "these batches are of 'classification'"),
    ],
)
def test_batches_of_other_tasks_are_refused(model, more, settings, said):
    with pytest.raises(DataError, match=said):
        select_layers(tiny(model), batch(**more), **settings)


class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = tiny("bert").bert

    def forward(self, input_ids, attention_mask=None):
        return self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


def test_a_module_of_ones_own_is_given_what_it_takes():
    rows = [{"text": f"w{i} w{i + 3}", "label": i % 2} for i in range(12)]
    wanted = select_layers(tiny("bert").bert, rows, tokenizer())
    assert select_layers(Head(), rows, tokenizer()).importance == pytest.approx(wanted.importance)
    with torch.device("meta"), pytest.raises(ModelError, match="on the meta device: its weights are not loaded"):
        select_layers(tiny("bert"), rows, tokenizer())
    other = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
    with pytest.raises(ModelError, match=r"TransformerEncoder takes src, .*, not input_ids; give the transformer"):
        select_layers(other, rows, tokenizer())
