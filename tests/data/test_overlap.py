"""Test rows that training has read are counted, whatever the command, and near ones on request."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersift.config.recipe import recipe_of
from layersift.data.encode import Encoder, encode_rows
from layersift.data.split import NEAR, count_read, digests_of, find_overlap
from layersift.data.table import table_of
from layersift.experiment.prepare import prepare, read_tables
from layersift.progress import Reporter
from words import tokenizer


def rows(count, start=0):
    """Rows of eight words, none of which read alike."""
    rng = np.random.default_rng(start)
    drawn = rng.integers(0, 40, (count, 7))
    return [{"text": " ".join(f"w{w}" for w in (i % 40, *row)), "label": f"c{i % 2}"} for i, row in enumerate(drawn)]


def spelled(text, how):
    return {0: text, 1: text.upper(), 2: f"  {text}\n", 3: text.replace(" ", "   ").title()}[how]


@settings(max_examples=30)
@given(st.sets(st.integers(0, 19)), st.lists(st.integers(0, 3), min_size=20, max_size=20))
def test_rows_that_read_alike_are_counted_however_they_are_spelled(known, how):
    train, fresh = rows(20, 1), rows(20, 2)
    tests = [{"text": spelled(train[i]["text"], how[i]), "label": "c0"} if i in known else fresh[i] for i in range(20)]
    encoder = Encoder(tokenizer(), "classification", ("c0", "c1"), 64)
    tables = [table_of(of, "f") for of in (train, tests)]
    trained, tested = (digests_of(t, encode_rows(t, encoder, range(20))) for t in tables)
    assert count_read(tested, {digest for digests in trained for digest in digests}) == len(known)


def test_rows_that_differ_behind_the_cut_read_alike():
    train, tests = ([{"text": f"w1 w2 w3 w{i}", "label": f"c{i % 2}"} for i in of] for of in (range(8), range(8, 16)))
    tables = [table_of(of, "f") for of in (train, tests)]
    for length, count in ((4, 8), (16, 0)):
        encoder = Encoder(tokenizer(), "classification", ("c0", "c1"), length)
        trained, tested = (digests_of(t, encode_rows(t, encoder, range(8))) for t in tables)
        assert count_read(tested, {digest for digests in trained for digest in digests}) == count


def test_what_is_answered_does_not_count():
    """A prompt that was read with another answer has been read."""
    chats = [[{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": "w9"}] for i in range(8)]
    others = [[turns[0], {"role": "assistant", "content": "w8 w7"}] for turns in chats]
    encoder = Encoder(tokenizer("decoder", chat=True), "instruction")
    tables = [table_of([{"messages": turns} for turns in of], "f") for of in (chats, others)]
    trained, tested = (digests_of(t, encode_rows(t, encoder, range(8))) for t in tables)
    assert count_read(tested, {digest for digests in trained for digest in digests}) == 8


WORDS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=14)


@settings(max_examples=200)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, min_size=1, max_size=6))
def test_near_rows_are_those_of_a_plain_comparison(mine, theirs):
    def runs(words):
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    table, others = (table_of([{"text": " ".join(words)} for words in of], "f", kind="text") for of in (mine, theirs))
    found = find_overlap(table, others)
    for i, words in enumerate(mine):
        same = [j for j, other in enumerate(theirs) if other == words]
        shares = [len(runs(words) & runs(other)) / len(runs(words) | runs(other)) for other in theirs]
        near = [j for j, share in enumerate(shares) if share >= NEAR]
        assert found.same.get(i) == (same[0] if same else None)
        assert found.near.get(i) == (near[0] if near and not same else None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("overlap")
    train, fresh = rows(32, 1), rows(16, 2)
    near = [{"text": f"{row['text']} w1", "label": row["label"]} for row in train[5:8]]
    tests = [*[{**row, "text": row["text"].upper()} for row in train[:5]], *near, *fresh[:12]]
    for name, of in (("train", train), ("test", tests), ("fresh", fresh)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    return directory


def test_commands_say_how_many_test_rows_training_has_read(place, bert_directory, call):
    words = f"train {bert_directory} --data train.jsonl --epochs 1 --eval-data test.jsonl -o run"
    trained = call(*words.split(), cwd=place)
    assert trained.returncode == 0, trained.stderr
    assert "test.jsonl: 5 of 20 rows read like rows trained on" in trained.stdout
    assert "5 of 20 rows" in json.loads((place / "run" / "layersift.json").read_text())["notices"][0]
    for data, count, rows in (("test", 5, 20), ("train", 32, 32), ("fresh", 0, 16)):
        judged = call("evaluate", "run", "--data", f"{data}.jsonl", "--json", cwd=place)
        assert json.loads(judged.stdout)["rows_read_in_training"] == count
        said = call("evaluate", "run", "--data", f"{data}.jsonl", cwd=place).stderr
        assert (f"{count} of {rows} rows read like rows trained on" in said) == bool(count)
    digests = (place / "run" / "rows-read.txt").read_text()
    assert len(digests.split()) == 64
    (place / "run" / "rows-read.txt").write_text("what is this")
    refused = call("evaluate", "run", "--data", "test.jsonl", cwd=place)
    assert refused.returncode == 2
    assert "rows-read.txt" in refused.stderr
    (place / "run" / "rows-read.txt").unlink()
    assert (
        json.loads(call("evaluate", "run", "--data", "test.jsonl", "--json", cwd=place).stdout)["rows_read_in_training"]
        is None
    )


def test_experiments_say_it_beside_their_tables(place, bert_directory):
    values = {"model": bert_directory, "data": str(place / "train.jsonl"), "output": "out"}
    for test, said in (
        ("test", ("test: 5 of 20 rows read like rows trained on, so that the score is too good",)),
        ("fresh", ()),
    ):
        recipe = recipe_of(values | {"evaluate": str(place / f"{test}.jsonl")}, "r.yaml")
        assert prepare(recipe, read_tables(recipe), Reporter()).notices == said


def test_near_rows_are_counted_on_request(place, bert_directory, call):
    words = f"inspect {bert_directory} --data test.jsonl --against train.jsonl --show 2"
    said = call(*words.split(), cwd=place).stdout
    assert "5 of 20 rows read like rows of train.jsonl, 3 more nearly do" in said
    assert said.count("\nnear: test.jsonl, row ") == 2
    found = json.loads(call(*words.split(), "--json", cwd=place).stdout)["overlap"]
    assert found["near"][0] == ["test.jsonl, row 6", "train.jsonl, row 6"]
    assert (len(found["same"]), len(found["near"]), found["rows"]) == (5, 3, 20)
