"""Columns with names that nobody knows are proposed by what stands in them, and what is proposed can be read."""

import shlex

import pytest

from layersift.config.recipe import Columns
from layersift.data.columns import likely_columns, propose_columns
from layersift.data.table import table_of
from layersift.errors import DataError

TICKETS = [
    {
        "ticket": f"T-{i}",
        "subject": f"where is parcel {i}",
        "body": f"I have waited for parcel number {i} since {i} days",
        "team": ("billing", "delivery", "sales")[i % 3],
        "minutes": f"{i}.5",
    }
    for i in range(24)
]
CHATS = [{"turns": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": f"w{i}"}]} for i in range(9)]
SUMS = [{"id": i, "asked": f"what is {i} and {i}", "reply": f"it is {2 * i}"} for i in range(12)]
PHOTOS = [{"file": f"photos/{i}.JPG", "animal": ("cat", "dog")[i % 2], "nr": i} for i in range(12)]


@pytest.mark.parametrize(
    ("rows", "given", "kind", "flags"),
    [
        (TICKETS, {}, "classification", "--text-column body --label-column team"),
        (TICKETS, {"text": "subject"}, "classification", "--text-column subject --label-column team"),
        (TICKETS, {"label": "minutes"}, "regression", "--text-column body --label-column minutes"),
        (CHATS, {}, "instruction", "--messages-column turns"),
        (SUMS, {}, "instruction", "--prompt-column asked --response-column reply"),
        (PHOTOS, {}, "classification", "--label-column animal --image-column file"),
        ([{"what I say": f"w{i} w1 w2"} for i in range(9)], {}, "text", "--text-column 'what I say'"),
    ],
)
def test_what_is_proposed_can_be_read(rows, given, kind, flags):
    first, *others = propose_columns(rows, Columns(**given))
    assert first.flags == flags
    for way in (first, *others):
        words = shlex.split(way.flags)
        named = dict(
            zip([w[2:].removesuffix("-column").replace("-", "_") for w in words[::2]], words[1::2], strict=True)
        )
        assert (
            table_of(rows, "f", Columns(**{r: n for r, n in named.items() if r != "task"}), named.get("task")).kind
            == way.kind
        )
    if "text" not in given:  # a text alone can be read
        with pytest.raises(DataError) as refused:
            table_of(rows, "f", Columns(**given))
        assert f"{first.flags} ({kind})" in str(refused.value)


def test_candidates_by_flag_say_what_stands_in_them():
    likely = likely_columns(TICKETS)
    assert likely["--text-column"] == ["body (10 words on average)", "subject (4 words on average)"]
    assert likely["--label-column"] == ["team (3 different values)", "minutes"]
    assert likely["--prompt-column"] == likely["--text-column"]
    assert "--messages-column" not in likely
    assert likely_columns(SUMS)["--response-column"][0].startswith("reply ")


def test_nothing_is_proposed_where_nothing_fits_the_task():
    assert propose_columns(PHOTOS, Columns(), "text") == []
    assert propose_columns(TICKETS, Columns(choices="body"), "classification") == []
    with pytest.raises(DataError, match="--messages-column"):
        table_of([{"nr": i} for i in range(9)], "f")


def test_a_misspelled_column_is_guessed():
    with pytest.raises(DataError, match="Did you mean 'subject'"):
        table_of(TICKETS, "f", Columns(text="subjct"))
