"""Rows that read the same are on one side of a split, classes in proportion, and else it is the permutation's start."""

from collections import Counter

import numpy as np
import pytest

from layersift.data.split import count_read_alike, split_off
from layersift.data.table import table_of
from layersift.errors import DataError


def classified(count, classes=3):
    return [{"text": f"w{i} w{i * 7}", "label": f"c{i % classes}"} for i in range(count)]


def numbers(part):
    return list(part.numbers)


def test_without_rows_that_read_alike_it_is_the_start_of_the_permutation():
    rest, held_back = split_off(table_of(classified(50), "f"), 0.2, 3)
    order = np.random.default_rng(3).permutation(50)
    assert numbers(held_back) == sorted(i + 1 for i in order[:10])
    assert numbers(rest) == sorted(i + 1 for i in order[10:])


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_rows_that_read_alike_are_on_one_side(seed, by_class):
    rows = classified(60)
    again = [{**row, "text": f"  {row['text'].upper()}\n", "label": "c0"} for row in rows[:20]]  # and other labels
    table = table_of([*rows, *again], "f")
    rest, held_back = split_off(table, 0.3, seed, by_class=by_class)
    texts = [{" ".join(row["text"].lower().split()) for row in part.rows} for part in (rest, held_back)]
    assert not texts[0] & texts[1]
    assert len(rest.rows) + len(held_back.rows) == 80
    assert abs(len(held_back.rows) - 24) <= 3
    assert count_read_alike(table) == 20


def test_every_class_is_held_back_in_proportion_and_none_as_a_whole():
    labels = ["a"] * 70 + ["b"] * 25 + ["c"] * 4 + ["d"]
    table = table_of([{"text": f"w{i}", "label": label} for i, label in enumerate(labels)], "f")
    for seed in range(20):
        rest, held_back = split_off(table, 0.2, seed, by_class=True)
        assert Counter(row["label"] for row in held_back.rows) == {"a": 14, "b": 5, "c": 1}
        assert Counter(row["label"] for row in rest.rows) == {"a": 56, "b": 20, "c": 3, "d": 1}


def test_a_class_whose_rows_all_read_the_same_is_trained_on():
    rows = [*classified(30, 2), *[{"text": "the same", "label": "lone"}] * 10]
    for seed in range(10):
        _, held_back = split_off(table_of(rows, "f"), 0.25, seed, by_class=True)
        assert "lone" not in {row["label"] for row in held_back.rows}


def test_what_is_answered_does_not_count_and_what_is_asked_beside_does():
    asked = [{"instruction": f"do w{i % 12}", "input": f"w{i % 12}", "output": f"w{i}"} for i in range(36)]
    chats = [
        {"messages": [{"role": "user", "content": f"do w{i % 12}"}, {"role": "assistant", "content": f"w{i}"}]}
        for i in range(36)
    ]
    for rows in (asked, chats):
        rest, held_back = split_off(table_of(rows, "f"), 0.25, 1)
        assert len(held_back.rows) == 9
        sides = [{(n - 1) % 12 for n in numbers(part)} for part in (rest, held_back)]
        assert not sides[0] & sides[1]
    others = [{**row, "input": f"w{i}"} for i, row in enumerate(asked)]
    assert count_read_alike(table_of(others, "f")) == 0


def test_a_split_that_leaves_a_side_empty_is_refused():
    with pytest.raises(DataError, match=r"0\.01 of 30 rows"):
        split_off(table_of(classified(30), "f"), 0.01, 0)
    with pytest.raises(DataError, match="1 of which read differently"):
        split_off(table_of([{"prompt": "p", "response": f"w{i}"} for i in range(20)], "f"), 0.2, 0)
