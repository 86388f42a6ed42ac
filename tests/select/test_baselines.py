import math

import pytest

from layersift.config.variants import parse_variant
from layersift.errors import LayersiftError
from layersift.select.layers import draw_masks, variant_mask


@pytest.mark.parametrize(
    ("variant", "mask"),
    [
        ("all", "1111"),
        ("first", "1100"),
        ("last", "0011"),
        ("top-1", "0001"),
        ("top-3", "0111"),
        ("published=1001", "1001"),
    ],
)
def test_layers_of_an_variant(variant, mask):
    assert variant_mask(variant, 4, 2, [3, 2, 1, 0]) == mask


def test_a_ranking_that_is_shorter_is_filled_up_with_the_lowest_layers():
    assert variant_mask("top-3", 4, 2, [3]) == "1101"


def test_random_layers_are_different_draws():
    masks = draw_masks(6, 3, 5, 0)
    assert len(set(masks)) == 5
    assert all(m.count("1") == 3 for m in masks)
    assert masks[:1] == draw_masks(6, 3, 1, 0)
    assert len(draw_masks(4, 1, 9, 0)) == 4
    assert len({draw_masks(6, 3, 1, seed) for seed in range(20)}) > 5


def test_random_layers_are_no_other_rows_layers():
    """Seed 0 draws the last half of six layers first."""
    assert draw_masks(6, 3, 1, 0) == ("000111",)
    others = {"000111", "101010"}
    assert others.isdisjoint(draw_masks(6, 3, 18, 0, others))
    assert len(draw_masks(6, 3, 100, 0, others)) == math.comb(6, 3) - 2
    assert draw_masks(6, 3, 5, 0, {"111111", "000001"}) == draw_masks(6, 3, 5, 0)  # of other sizes


def test_where_no_others_remain_they_are_drawn_all_the_same():
    assert set(draw_masks(2, 1, 5, 0, {"10", "01"})) == {"10", "01"}
    assert draw_masks(3, 3, 5, 0, {"111"}) == ("111",)


def test_a_mask_goes_by_its_name():
    assert parse_variant("published=1001").name == "published"
    assert parse_variant("top-3").name == "top-3"


@pytest.mark.parametrize(
    "variant", ["top-0", "some", "published=0000", "published=012", "all=1111", "top-2=1100", "=11", "random-10=1100"]
)
def test_what_is_no_variant_is_refused(variant):
    with pytest.raises(LayersiftError, match="variant"):
        parse_variant(variant)


@pytest.mark.parametrize("variant", ["top-5", "published=101"])
def test_variants_must_fit_the_number_of_layers(variant):
    parse_variant(variant)
    with pytest.raises(LayersiftError, match="4 layers"):
        variant_mask(variant, 4, 2)
