from layersift.errors import LayersiftError
from layersift.files import begun_otherwise


def test_differences_name_the_entries():
    before = {"train": {"rank": 8, "epochs": 3.0}, "seed": 0}
    assert begun_otherwise(before, before) is None
    assert begun_otherwise(before, {"train": {"rank": 4, "epochs": 3.0}, "seed": 1}) == "other seed, train.rank"


def test_an_entry_that_an_earlier_version_did_not_write_is_null():
    before = {"train": {"rank": 8}}
    assert begun_otherwise(before, {"train": {"rank": 8, "precision": None}, "smoke": None}) is None
    said = begun_otherwise(before, {"train": {"rank": 8, "precision": "bf16"}})
    assert said == "other train.precision: an earlier version of layersift began it, and wrote none"


def test_a_message_is_one_short_line_whatever_it_quotes():
    error = LayersiftError(f"rows.jsonl, row 3: label {'9' * 5000}\nis not among the classes")
    assert str(error).startswith("rows.jsonl, row 3: label 999")
    assert str(error).endswith("999 is not among the classes")
    assert " ... " in str(error)
    assert len(str(error)) < 400
    assert str(LayersiftError("as it is")) == "as it is"
