"""Changing keys of a YAML text: the values are as asked, and every other line stays."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layersift.errors import LayersiftError
from layersift.export.text import edit, merged

WORDS = st.text("abcxyz é'\"#:-{}[]&*!|>%@,?~", max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2).map(lambda v: round(v, 3)) | WORDS
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text("abc", min_size=1), PLAIN, max_size=3)
KEYS = st.sampled_from(["adapter", "lora_r", "targets", "peft", "data", "model", "zz"])
MAPPINGS = st.dictionaries(KEYS, VALUES, min_size=1)


@given(MAPPINGS, MAPPINGS, st.sets(KEYS), st.booleans(), st.booleans())
def test_values_are_as_asked_and_comments_stay(before, changes, gone, spaced, braces):
    text = ""
    for number, (key, value) in enumerate(before.items()):
        if braces:
            value = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
            text += f"# comment {number}\n{key}: {value}\n"
        else:
            text += f"# comment {number}\n" + yaml.safe_dump({key: value}, allow_unicode=True)
        text += "\n" if spaced else ""
    removed = {key: None for key in gone if key not in changes}
    found = edit(text, Path("their.yaml"), changes, removed, "about")
    assert yaml.safe_load(found) == merged(before, changes, removed)
    comments = [line for line in found.splitlines() if line.startswith("# comment")]
    assert comments == [f"# comment {number}" for number in range(len(before))]
    assert found.count("# about\n") == 1


def test_a_mapping_changes_the_keys_of_the_one_that_is_there():
    text = "peft:\n    dim: 4  # small\n    skip: true\n    more:\n      a: 1\nlast: 1\n"
    found = edit(text, Path("x"), {"peft": {"dim": 8, "names": ["a"]}}, {"peft": {"skip": None}}, "by us")
    assert found == "peft:\n# by us\n    dim: 8  # small\n    more:\n      a: 1\n    names:\n    - a\nlast: 1\n"


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "base: &b {r: 1}\nown:\n  <<: *b\n"])
def test_anchors_that_others_need_are_refused_or_kept(text):
    with pytest.raises(LayersiftError, match="x"):
        edit(text, Path("x"), {"a": 2, "base": 1}, {}, "")
    assert edit(text, Path("x"), {"c": 3}, {}, "").startswith(text)
