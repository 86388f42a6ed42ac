"""Layers as people write them, held against Python's own slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersift.config.quantities import is_layer_text, layers_told, parse_layers
from layersift.config.variants import parse_variant
from layersift.errors import LayersiftError, SelectionError

NUMBERS = list(range(32))


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("20-27,31", [*NUMBERS[20:28], 31]),
        ("last:8", NUMBERS[-8:]),
        ("first:4", NUMBERS[:4]),
        ("every:2", NUMBERS[::2]),
        ("every:32", [0]),
        ("last:32", NUMBERS),
        ("first:2, last:2", [0, 1, 30, 31]),
        ("31, 3-3", [3, 31]),
    ],
)
def test_each_form_is_a_slice(text, layers):
    assert is_layer_text(text)
    assert list(parse_layers(text, 32)) == layers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("32", "no layer 32; the layers are 0 to 31"),
        ("20-40", "no layer 40"),
        ("7-3", "write 3-7"),
        ("3,1-4", "layer 3 is named twice"),
        ("last:2,31", "layer 31 is named twice"),
        ("last:33", "last:32 is the most"),
        ("every:33", "every:32 is the most"),
        ("last:0", "names no layer"),
        ("", "names no layer"),
        ("3,", "names no layer"),
        ("-1", "names no layer"),
        ("3..5", "names no layer"),
        ("٣", "names no layer"),
        ("all", "names no layer"),
    ],
)
def test_what_names_no_layers_is_refused(text, said):
    with pytest.raises(SelectionError, match=said):
        parse_layers(text, 32)


@given(st.sets(st.integers(0, 99), min_size=1))
def test_what_is_told_is_read_back(layers):
    ascending = tuple(sorted(layers))
    assert parse_layers(layers_told(ascending), 100) == ascending


def test_an_variant_is_a_mask_or_layers():
    assert parse_variant("mine=1,3", 4).mask == "0101"
    assert parse_variant("mine=last:2", 4).mask == "0011"
    assert parse_variant("mine=0110", 4).mask == "0110"
    assert parse_variant("mine=10-10", 12).mask == "0" * 10 + "10"
    assert parse_variant("mine=last:2").name == "mine"
    with pytest.raises(SelectionError, match="written 10-10"):
        parse_variant("mine=10", 12)
    for wrong in ("mine=last:9", "mine=4", "mine=a", "mine=", "all=1,3", "mine=0,0"):
        with pytest.raises(LayersiftError):
            parse_variant(wrong, 4)
