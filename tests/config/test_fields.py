"""Settings: every value held against its declared type and range, wherever it comes from."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersift.config.fields import help_of, meta_of, parse_yaml, read_as, types_of, unknown_keys
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource, Recipe, override, recipe_of
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.config.variants import CompareSettings, sweep_variants
from layersift.errors import LayersiftError

SETTINGS = [ModelSource, DataSettings, SelectSettings, TrainSettings, EvaluateSettings, CompareSettings]
LEAST = {"model": "m", "data": "d.jsonl", "output": "o"}


@pytest.mark.parametrize("cls", SETTINGS)
def test_every_field_says_what_it_is(cls):
    for name, hint in types_of(cls).items():
        assert help_of(hint), f"{cls.__name__}.{name}"


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (SelectSettings, {"ratio": 1.5}, "ratio 1.5 is out of range; above 0 and at most 1 is possible"),
        (SelectSettings, {"ratio": "half"}, "ratio 'half': expected float, got str"),
        (SelectSettings, {"top_n": 2.0}, "top-n 2.0: expected int, got float"),
        (SelectSettings, {"top_n": True}, "top-n True: expected int, got bool"),
        (SelectSettings, {"seed": -1}, "seed -1 is out of range; at least 0 and at most"),
        (SelectSettings, {"threshold": math.inf}, "threshold inf is out of range; a finite number is needed"),
        (SelectSettings, {"until_stable": 0.5}, "until-stable 0.5 is out of range; above 0.5 and below 1 is possible"),
        (TrainSettings, {"epochs": math.nan}, "epochs nan is out of range; a finite number is needed"),
        (TrainSettings, {"epochs": 1e24}, "epochs 1e+24 is out of range"),
        (
            TrainSettings,
            {"batch_size": 0},
            "batch-size 0 is out of range; at least 1 and at most 1,000,000 is possible",
        ),
        (TrainSettings, {"dropout": 1}, "dropout 1 is out of range; at least 0 and below 1 is possible"),
        (TrainSettings, {"ranks": {"mlp": "four"}}, "expected int, got str"),
        (TrainSettings, {"ranks": [4]}, "expected object, got array"),
        (
            DataSettings,
            {"data": "d", "max_length": 0},
            "max-length 0 is out of range; at least 1 and at most 100,000,000",
        ),
        (DataSettings, {"data": "d", "task": "poetry"}, "unknown task 'poetry'"),
        (EvaluateSettings, {"metrics": "accuracy"}, "expected array, got str"),
        (CompareSettings, {"sizes": [2, 2]}, "compare.sizes: 2: each can be named once"),
        (CompareSettings, {"learning_rates": [1e-3, 20]}, "expected float < 10"),
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused_by_the_constructor(cls, values, message):
    with pytest.raises(LayersiftError) as error:
        cls(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compare": {"criteria": [3]}}, "r.yaml: compare.criteria[0]: expected str, got int"),
        ({"compare": {"sizes": [2, 0]}}, "r.yaml: compare.sizes[1]: expected int >= 1"),
        ({"compare": {"criteria": "cka"}}, "r.yaml: compare.criteria: expected array, got str"),
        ({"train": {"epoch": 1}}, "r.yaml, train: unknown key 'epoch'; did you mean 'epochs'?"),
        ({"train": 3}, "r.yaml: train: expected object, got int"),
        ({"evaluate": {"data": {"a": 1}}}, "evaluate.data"),
        ({"select": {"seed": 1}}, "r.yaml, select: unknown key 'seed'"),
        ({"select": {"ratio": 2}}, "r.yaml: select.ratio: expected float <= 1"),
        ({"variants": "all"}, "r.yaml: variants: expected array, got str"),
        ({"variants": ["all", "all"]}, "variants: each can be named once"),
        ({"model": None}, "r.yaml: 'model' is missing"),
        ({"smoke": {"classes": 2}}, "smoke: 'model_type' is missing"),
    ],
)
def test_recipes_are_refused_with_the_path_of_the_key(values, message):
    with pytest.raises(LayersiftError) as error:
        recipe_of(LEAST | values, "r.yaml")
    assert message in str(error.value)


def test_a_recipe_says_the_same_after_json():
    recipe = recipe_of(
        LEAST | {"seed": 3, "train": {"ranks": {"attention": 4}, "method_options": {"use_rslora": True}}}, "r.yaml"
    )
    assert recipe.select.seed == 3
    assert read_as(Recipe, recipe.to_json(), "again") == recipe


def test_numbers_of_yaml_are_numbers():
    values = parse_yaml("{a: 1e-3, b: 2E5, c: .5e1, d: 1e-3x, e: '1e-3'}", "x")
    assert values == {"a": 0.001, "b": 200000.0, "c": 5.0, "d": "1e-3x", "e": "1e-3"}


@given(st.text(max_size=30))
def test_whatever_is_set_over_a_recipe_is_read_or_refused_in_one_line(text):
    try:
        override({}, [f"train.epochs={text}"])
    except LayersiftError as error:
        said = str(error)
    else:
        said = "--set"
    assert "--set" in said
    assert "\n" not in said


def test_unknown_keys_are_found_however_deep_they_lie():
    values = {"train": {"x": 1, "rank": 2}, "model": {"name": "m", "y": {"z": 1}}, "w": 0}
    assert [(path, key) for path, key, _ in unknown_keys(Recipe, values)] == [
        ("train", "x"),
        ("model", "y"),
        ("", "w"),
    ]


def test_ranges_are_read_from_any_union():
    hints = types_of(TrainSettings)
    assert meta_of(hints["max_samples"]).ge == 1
    assert meta_of(hints["learning_rate"]).lt == 10
    assert {f.name for f in dataclasses.fields(TrainSettings)} == set(hints)


@pytest.mark.parametrize(
    ("layers", "sizes", "variants"),
    [
        (6, None, ("top-1", "top-2", "top-3", "top-4", "all")),
        (4, None, ("top-1", "top-2", "all")),
        (1, None, ("all",)),
        (6, "5, 1,6", ("top-1", "top-5", "all")),
    ],
)
def test_a_sweep_goes_by_powers_of_two_or_as_asked(layers, sizes, variants):
    assert sweep_variants(layers, sizes) == variants


@pytest.mark.parametrize("sizes", ["0", "7", "x", "1,,2", ""])
def test_sizes_of_a_sweep_are_numbers_of_layers(sizes):
    with pytest.raises(LayersiftError, match="expected numbers from 1 to 6"):
        sweep_variants(6, sizes)


def test_a_recipe_of_an_older_version_says_today_what_it_said():
    older = {
        "arms": ["all", "untouched"],
        "train": {"strategy": "rising:2@0.5"},
        "compare": {"strategies": ["dropping:0.5"]},
    }
    newer = {
        "variants": ["all", "base"],
        "train": {"strategy": "freezing:2@0.5"},
        "compare": {"strategies": ["skipping:0.5"]},
    }
    assert recipe_of(LEAST | older, "r.yaml") == recipe_of(LEAST | newer, "r.yaml")
    with pytest.raises(LayersiftError, match="arms"):
        recipe_of(LEAST | {"arms": ["all"], "variants": ["all"]}, "r.yaml")
