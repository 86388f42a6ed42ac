import pytest

from layersift.config.arms import parse_arm
from layersift.errors import LayersiftError
from layersift.select.baselines import baseline
from tiny import selection_of, tiny


@pytest.fixture(scope="module")
def selection():
    return selection_of(tiny("bert"), [1, 3])  # its ranking is 3, 2, 1, 0


@pytest.mark.parametrize(
    ("arm", "layers"),
    [
        ("all", (0, 1, 2, 3)),
        ("first", (0, 1)),
        ("last", (2, 3)),
        ("top-1", (3,)),
        ("top-3", (1, 2, 3)),
        ("published=1001", (0, 3)),
    ],
)
def test_layers_of_an_arm(selection, arm, layers):
    assert baseline(arm, selection, 0).selected_layers == layers


def test_random_layers_depend_on_the_seed_and_are_other_than_the_selected(selection):
    drawn = {baseline("random", selection, seed).selected_layers for seed in range(20)}
    assert len(drawn) > 2
    assert (1, 3) not in drawn
    assert baseline("random", selection, 7) == baseline("random", selection, 7)


def test_a_mask_goes_by_its_name():
    assert parse_arm("published=1001").name == "published"
    assert parse_arm("top-3").name == "top-3"


@pytest.mark.parametrize("arm", ["top-0", "some", "published=0000", "published=012", "all=1111", "top-2=1100", "=11"])
def test_what_is_no_arm_is_refused(arm):
    with pytest.raises(LayersiftError, match="arm"):
        parse_arm(arm)


@pytest.mark.parametrize("arm", ["top-5", "published=101"])
def test_arms_must_fit_the_number_of_layers(selection, arm):
    parse_arm(arm)
    with pytest.raises(LayersiftError, match="4 layers"):
        baseline(arm, selection, 0)
