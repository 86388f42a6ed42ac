"""Columns that are left over: where they look like what is to be learned, a text alone is no reading of the data."""

import re

import pytest

from layersift.config.recipe import Columns
from layersift.data.table import table_of
from layersift.errors import DataError

LONG = "w1 w2 w3 w4 w5 w6"
# Public layouts by what is left over; each row is made of its index.
REFUSED = {
    "IMDB": (
        lambda i: {"review": f"{LONG} w{i}", "sentiment": ["positive", "negative"][i % 2]},
        "--label-column sentiment",
    ),
    "TREC": (lambda i: {"text": f"{LONG} w{i}", "coarse": i % 6, "fine": i % 10}, "coarse"),
    "SMS": (lambda i: {"text": f"{LONG} w{i}", "v1": ["ham", "spam"][i % 2]}, "--label-column v1"),
    "airline": (lambda i: {"text": f"{LONG} w{i}", "airline_sentiment": ["bad", "fine"][i % 2]}, "airline_sentiment"),
    "Amazon": (
        lambda i: {"title": f"w{i}", "text": f"{LONG} w{i}", "rating": float(i % 5 + 1)},
        "--label-column rating",
    ),
    "toxic": (lambda i: {"text": f"{LONG} w{i}", "is_toxic": i % 3 == 0}, "is_toxic"),
    "scores": (lambda i: {"sentence": f"{LONG} w{i}", "human_score": i / 7}, "human_score"),
    "WinoGrande": (
        lambda i: {"sentence": f"{LONG} w{i}", "option1": f"w{i}", "option2": f"w{i + 1}", "correct": str(i % 2 + 1)},
        "correct",
    ),
    "AQuA": (lambda i: {"question": f"{LONG} w{i}", "rationale": f"{LONG}", "correct": "ABCDE"[i % 5]}, "correct"),
    "COPA": (
        lambda i: {
            "premise": f"{LONG} w{i}",
            "choice1": f"{LONG} w{i} w2",
            "question": ["cause", "effect"][i % 2],
            "label": i % 2,
        },
        "premise",
    ),
    "class index": (lambda i: {"review": f"{LONG} w{i}", "label_id": i % 3}, "label_id"),
    "MedQA": (
        lambda i: {"question": f"{LONG} w{i}", "options": {"A": f"w{i}", "B": "w2"}, "answer_idx": "AB"[i % 2]},
        "answer_idx",
    ),
    "SQuAD's own": (lambda i: {"title": f"w{i}", "paragraphs": [{"context": LONG, "qas": []}]}, "paragraphs"),
    "summaries": (
        lambda i: {"text": f"{LONG} w{i}", "short_summary": f"w{i} w2 w3"},
        "--response-column short_summary",
    ),
}
# What an answer is chosen from, and a column of train and test; each by what the message names.
PARTS_UNREAD = {
    "MMLU as CSV": (
        lambda i: {"question": f"{LONG} w{i}", "A": "w1", "B": "w2", "C": "w3", "D": "w4", "answer": "ABCD"[i % 4]},
        "'A', 'B', 'C', 'D'",
    ),
    "MedMCQA": (
        lambda i: {"question": f"{LONG} w{i}", "opa": "w1", "opb": "w2", "opc": "w3", "answer": f"w{i % 3}"},
        "'opa', 'opb', 'opc'",
    ),
    "WinoGrande with labels": (
        lambda i: {"sentence": f"{LONG} w{i}", "option1": f"w{i}", "option2": f"w{i + 1}", "label": i % 2},
        "'option1', 'option2'",
    ),
    "HellaSwag": (lambda i: {"text": f"{LONG} w{i}", "endings": ["w1", "w2"], "label": i % 2}, "'endings'"),
    "parts": (lambda i: {"text": f"{LONG} w{i}", "label": i % 2, "split": ["train", "test"][i % 3 > 1]}, "test, train"),
}
READ = {
    "text alone": lambda i: {"text": f"{LONG} w{i}"},
    "a corpus": lambda i: {
        "text": f"{LONG} w{i}",
        "url": f"http://a/{i}",
        "source": ["web", "books"][i % 2],
        "lang": ["en", "de"][i % 2],
        "meta": {"set": "a"},
        "token_count": 7,
        "doc_id": i % 4,
    },
    "a label with its name": lambda i: {"text": f"{LONG} w{i}", "label": i % 2, "label_text": ["bad", "good"][i % 2]},
    "a pair with a genre": lambda i: {
        "premise": f"{LONG} w{i}",
        "hypothesis": f"w{i} w2 w3",
        "label": i % 3,
        "genre": ["fiction", "travel"][i % 2],
    },
    "questions with a passage": lambda i: {"query": f"w{i} w2 w3", "passage": f"{LONG} w{i}", "answer": f"w{i} w3"},
}


def rows(made):
    return [made(i) for i in range(24)]


@pytest.mark.parametrize("layout", REFUSED)
def test_what_looks_like_a_label_is_not_left_unread(layout):
    made, named = REFUSED[layout]
    with pytest.raises(DataError) as error:
        table_of(rows(made), "rows")
    assert named in str(error.value)
    assert layout == "COPA" or "--task text" in str(error.value) or "try --" in str(error.value)


@pytest.mark.parametrize("layout", REFUSED)
def test_who_says_what_is_to_be_read_gets_it(layout):
    made, _ = REFUSED[layout]
    if "text" in made(0):
        assert table_of(rows(made), "rows", kind="text").kind == "text"


@pytest.mark.parametrize("layout", PARTS_UNREAD)
def test_choices_and_parts_are_not_left_unread_unless_columns_are_given(layout):
    made, named = PARTS_UNREAD[layout]
    with pytest.raises(DataError) as error:
        table_of(rows(made), "rows")
    assert named in str(error.value)
    role, name = re.search(r"confirm with --(text|prompt)-column (\w+)", str(error.value)).groups()
    table_of(rows(made), "rows", Columns(**{role: name}))


@pytest.mark.parametrize("layout", READ)
def test_what_rows_are_called_and_come_from_is_no_label(layout):
    table = table_of(rows(READ[layout]), "rows")
    assert table.kind == {"text alone": "text", "a corpus": "text", "questions with a passage": "instruction"}.get(
        layout, "classification"
    )
    assert layout != "questions with a passage" or table.columns.context == "passage"
