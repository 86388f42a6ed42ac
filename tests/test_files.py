from layersift.errors import LayersiftError
from layersift.files import differences


def test_differences_name_the_entries():
    before = {"train": {"rank": 8, "epochs": 3.0}, "seed": 0}
    assert differences(before, before) == []
    assert differences(before, {"train": {"rank": 4, "epochs": 3.0}, "seed": 1}) == ["seed", "train.rank"]


def test_an_entry_that_an_earlier_version_did_not_write_is_null():
    assert differences({"train": {"rank": 8}}, {"train": {"rank": 8, "precision": None}, "smoke": None}) == []
    assert differences({"train": {"rank": 8}}, {"train": {"rank": 8, "precision": "bf16"}}) == ["train.precision"]


def test_a_message_is_one_short_line_whatever_it_quotes():
    error = LayersiftError(f"rows.jsonl, row 3: label {'9' * 5000}\nis not among the classes")
    assert str(error).startswith("rows.jsonl, row 3: label 999")
    assert str(error).endswith("999 is not among the classes")
    assert " ... " in str(error)
    assert len(str(error)) < 400
    assert str(LayersiftError("as it is")) == "as it is"
