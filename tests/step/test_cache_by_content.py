"""FrozenPrefix(cache=...) in anybody's Trainer: the weights that the same training has without it, to the bit."""

import logging

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

from layersift import FrozenPrefix, TrainingStrategy
from layersift.errors import LayersiftError
from layersift.step.activation_cache import ActivationCache, batch_rows
from tiny import selection_of, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS = (2, 3)
ROWS = [[3 + (7 * i + j) % 40 for j in range(4 + i % 3 * 2)] for i in range(12)]


def padded(rows, side="right", length=8, labels=None):
    """Batches as somebody's collator makes them, all of one length."""
    ids, mask, aims = [], [], []
    for place, row in enumerate(rows):
        empty = [0] * (length - len(row))
        left, right = (empty, []) if side == "left" else ([], empty)
        ids.append(left + row + right)
        mask.append([0] * len(left) + [1] * len(row) + [0] * len(right))
        aims.append([-100] * len(left) + row + [-100] * len(right) if labels is None else labels[place])
    return {name: torch.tensor(v) for name, v in {"input_ids": ids, "attention_mask": mask, "labels": aims}.items()}


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, place):
        return {"input_ids": ROWS[place], "label": place % 2}


def trained(place, callback=None, kind="llama", side="right", **settings):
    """The adapters of a Trainer's training, and how often the first block ran in it."""
    labels = kind == "bert"
    model = tiny(kind, tf.BertForSequenceClassification if labels else None)
    config = selection_of(model, LAYERS).peft_config(model, LoraConfig(r=4))
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    ran = []
    first = next(m for name, m in model.named_modules() if name.endswith(("layers.0", "layer.0")))
    projection = next(m for m in first.modules() if isinstance(m, torch.nn.Linear))
    projection.register_forward_hook(lambda *_: ran.append(model.training))
    given = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **settings}
    args = tf.TrainingArguments(
        str(place), report_to="none", use_cpu=True, seed=0, save_strategy="no", logging_steps=1,
        disable_tqdm=True, remove_unused_columns=False, **given,
    )  # fmt: skip

    def collate(rows):
        return padded(
            [row["input_ids"] for row in rows], side, labels=[row["label"] for row in rows] if labels else None
        )

    trainer = tf.Trainer(
        model, args, train_dataset=Data(), eval_dataset=Data(), data_collator=collate,
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    trainer.train()
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return weights, sum(ran)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CASES = {
    "shuffled": {},
    "left": {"side": "left"},
    "accumulated": {"gradient_accumulation_steps": 3},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "classifier": {"kind": "bert"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_without_the_cache(name, tmp_path):
    case, quiet = CASES[name], {"dropout": CASES[name].get("kind") != "bert"}
    plain, runs = trained(tmp_path / "a", FrozenPrefix(**quiet), **case)
    callback = FrozenPrefix(**quiet, cache="auto")
    cached, fewer = trained(tmp_path / "b", callback, **case)
    assert same(plain, cached)
    assert callback.served == 5  # the second and third epoch's batches but the first, which is computed for comparison
    assert runs == 9
    assert fewer == 4


def test_in_a_directory_nothing_is_left(tmp_path):
    plain, _ = trained(tmp_path / "a", FrozenPrefix())
    callback = FrozenPrefix(cache=str(tmp_path / "kept"))
    cached, _ = trained(tmp_path / "b", callback)
    assert same(plain, cached)
    assert callback.served == 5
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("cache", ["auto", "directory"])
def test_no_more_is_kept_than_may_be(cache, tmp_path, caplog):
    cache = cache if cache == "auto" else str(tmp_path / "kept")
    plain, _ = trained(tmp_path / "a", FrozenPrefix())
    width, number = 32, 4  # bytes of a number
    all_states = sum(map(len, ROWS)) * width * number
    for share in (1, 0.99):
        callback = FrozenPrefix(cache=cache, cache_bytes=int(share * all_states))
        with caplog.at_level(logging.WARNING):
            cached, _ = trained(tmp_path / "b", callback)
        assert same(plain, cached)
        assert (callback.served == 5) == (share == 1)
    assert "is full" in caplog.text or "share of the disk" in caplog.text
    with pytest.raises(LayersiftError, match="cache_bytes=5: expected"):
        FrozenPrefix(cache_bytes=5)
    with pytest.raises(LayersiftError, match="cache_bytes=0: expected"):
        TrainingStrategy(cache="auto", cache_bytes=0)


def test_progressive_freezing_serves_from_its_cut(tmp_path):
    layers = "freezing:3@0.5"
    plain, _ = trained(tmp_path / "a", TrainingStrategy(layers))
    callback = TrainingStrategy(layers, cache="auto")
    cached, _ = trained(tmp_path / "b", callback)
    assert same(plain, cached)
    assert callback.served == 5


@pytest.mark.parametrize(
    ("callback", "case", "why"),
    [
        (lambda: FrozenPrefix(cache="auto"), {"kind": "bert"}, "draws random numbers"),
        (lambda: TrainingStrategy("rotating:1@2", cache="auto"), {}, None),
    ],
    ids=["dropout", "rotating"],
)
def test_what_cannot_be_kept_is_said_and_changes_nothing(callback, case, why, tmp_path, caplog):
    off = callback()
    off.cache = "off"
    plain, _ = trained(tmp_path / "a", off, **case)
    on = callback()
    with caplog.at_level(logging.WARNING):
        cached, _ = trained(tmp_path / "b", on, **case)
    assert same(plain, cached)
    assert on.served == 0
    assert why is None or why in caplog.text


def test_of_a_block_that_runs_twice_in_a_pass_nothing_is_served():
    cache = ActivationCache(sure=False)
    cache.begin([1], [4])
    for visit in range(2):
        cache.keep(torch.full((1, 4, 2), float(visit)), depth=1)
    cache.begin([1], [4])
    assert cache.shallowest == 0
    assert "more than once" in cache.stopped


def test_beyond_its_bytes_nothing_more_is_kept():
    cache = ActivationCache(limit=40)
    for row in range(2):
        cache.begin([row], [4])
        cache.keep(torch.zeros(1, 4, 2), depth=1)
    assert cache.stopped == "memory is full"
    depths = []
    for row in range(2):
        cache.begin([row], [4])
        depths.append(cache.shallowest)
    assert depths == [1, 0]


def test_one_epoch_keeps_nothing(tmp_path):
    callback = FrozenPrefix(cache="auto")
    trained(tmp_path, callback, num_train_epochs=1)
    assert callback.served == 0


def test_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LayersiftError, match="not a directory"):
        FrozenPrefix(cache=str(tmp_path / "file"))


def keys(inputs):
    return [row.key for row in batch_rows(inputs)]


def spans(inputs):
    return [row[1:] for row in batch_rows(inputs)]


def test_rows_are_named_by_all_that_their_states_depend_on():
    base = padded(ROWS[:3])
    named = keys(base)
    assert len(set(named)) == 3
    assert spans(base) == [(place, 0, len(row)) for place, row in enumerate(ROWS[:3])]
    assert keys(padded(ROWS[:3], length=12)) == named  # padding is no part of a row
    assert keys({**base, "labels": base["labels"] * 0}) == named
    ids, left = base["input_ids"], padded(ROWS[:3], "left", 12)
    for other in (
        {**base, "token_type_ids": torch.ones_like(ids)},
        {**base, "position_ids": torch.arange(8).expand_as(ids)},
        {**base, "input_ids": ids + 1},
        {**base, "use_cache": False},
        left,
    ):
        assert not set(keys(other)) & set(named)
    assert spans(left) == [(place, 12 - len(row), len(row)) for place, row in enumerate(ROWS[:3])]


def packed(rows):
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(row))]]),
        "cu_seq_lens_q": torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()]),
    }


def test_packed_documents_are_named_each_for_itself():
    one, two, three = keys(packed(ROWS[:3]))
    assert keys(packed([ROWS[2], ROWS[0]])) == [three, one]
    assert spans(packed(ROWS[:3])) == [(0, 0, 4), (0, 4, 6), (0, 10, 8)]
    assert len({one, two, three}) == 3


def test_what_depends_on_its_company_is_not_served():
    cache = ActivationCache(sure=False)
    for company, expected in ((0.0, None), (1.0, "depends on the batch")):
        cache.begin([1], [4])
        assert cache.shallowest == 0
        cache.keep(torch.ones(1, 4, 2) + company, depth=1)
        assert expected is None or expected in cache.stopped
    cache.begin([1], [4])
    assert cache.shallowest == 0


@pytest.mark.parametrize("output", [torch.ones(2, 1, 4, 2), (torch.ones(1, 4, 2, 2), None), ({"states": 1},)])
def test_several_streams_of_states_are_not_kept(output):
    """As Gemma 3n's blocks and hyper-connections hand on; the training goes on without a cache."""
    cache = ActivationCache()
    cache.begin([1], [4])
    cache.keep(output, depth=1)
    assert cache.stopped == "its blocks hand on more than hidden states"
    assert cache.shallowest == 0


@pytest.mark.parametrize(
    "more",
    [
        {"pixel_values": torch.zeros(3, 4)},
        {"attention_mask": torch.ones(3, 1, 8, 8)},
        {"past_key_values": object()},
        {"output_hidden_states": True},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_else_enters_has_no_name(more):
    assert batch_rows({**padded(ROWS[:3]), **more}) is None


def test_a_row_in_another_precision_is_another_row():
    batch = padded(ROWS[:2])
    plain = batch_rows(batch)
    with torch.autocast("cpu", torch.bfloat16):
        lower = batch_rows(batch)
    assert {row.key for row in plain}.isdisjoint(row.key for row in lower)
    assert [row[1:] for row in plain] == [row[1:] for row in lower]
    assert plain == batch_rows(batch)
