"""The table of a run, and the picture of a selection."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from layersift.config.recipe import DataSettings, ModelSource, Recipe
from layersift.draw import require_picture
from layersift.errors import LayersiftError
from layersift.experiment.judge import Trained, judge
from layersift.experiment.run import Outcome
from layersift.records.runs import Result
from layersift.report.comparison import write_importance
from layersift.report.figures import draw
from layersift.report.tables import markdown, run_caption, run_rows
from tiny import selection_of, tiny
from variants import choice_of

RIGHT = {"selected": 38, "all": 40, "base": 10}  # of 50
COSTS = {"selected": (500, 15.0, 2**29, 2**19), "all": (1000, 20.0, 2**30, 2**20), "base": (None,) * 4}
MASKS = {"selected": "0011", "all": "1111", "base": ""}


def outcome(variants=("selected", "all", "base"), failures=(), **metrics):
    """A run whose variants gave and cost what stands above."""
    choices, results = [], {}
    for variant in variants:
        choice = choice_of(variant, 0, [MASKS[variant]], 1e-3)
        choices.append(choice)
        outcomes = tuple([1.0] * RIGHT[variant] + [0.0] * (50 - RIGHT[variant]))
        found = metrics or {"accuracy": RIGHT[variant] / 50, "f1": None if variant == "all" else 0.5}
        cell = choice.variants[0].cell(0)
        if variant not in failures:
            parameters, seconds, memory, adapter = COSTS[variant]
            results[cell] = Result(cell, found, 50, outcomes, (), None, parameters, seconds, memory, adapter)
    lost = {c.variants[0].cell(0): "out of memory" for c in choices if c.name in failures}
    recipe = Recipe(ModelSource("m"), DataSettings("d.jsonl"), "out", variants=tuple(variants))
    variants_found = {c.name: (results[cell],) for c in choices if (cell := c.variants[0].cell(0)) in results}
    rows = judge(choices, Trained((0,), results, lost))
    why = dict.fromkeys(failures, "out of memory")
    return Outcome(recipe, selection_of(tiny("bert"), [2, 3]), variants_found, rows, {}, why)


def test_ratios_are_to_all_layers_and_scores_have_intervals():
    header, half, everything, none = run_rows(outcome())
    assert header == [
        "layers", "accuracy ↑", "from all", "f1 ↑", "rate", "trained parameters", "seconds", "peak memory", "adapter",
    ]  # fmt: skip
    wilson = stats.binomtest(38, 50).proportion_ci(0.95, "wilson")
    width = max(0.76 - wilson.low, wilson.high - 0.76)
    assert half[:2] == ["selected 0011", f"0.7600 ± {width:.4f} (0.95)"]
    assert half[3:] == ["0.5000", "0.001", "500 (0.50)", "15.0 (0.75)", "512 MiB (0.50)", "0.50 MiB (0.50)"]
    # Agresti and Min: half an answer more in each of the four cells.
    centre = (0.5 - 2.5) / 52
    spread = 1.959964 * np.sqrt((3 / 52 - centre**2) / 52)
    assert half[2] == f"-0.0400 ({centre - spread:+.4f} to {centre + spread:+.4f})"
    assert (everything[2], everything[3]) == ("-", "undefined")
    assert none[4:] == ["-"] * 5


def test_without_all_layers_there_are_no_ratios():
    row = run_rows(outcome(["selected"]))[1]
    assert row[1].startswith("0.7600 ± ")
    assert "(" not in row[1]
    assert row[2] == "-"


def test_lower_losses_are_marked():
    assert run_rows(outcome(["selected"], loss=0.5, exact_match=0.1))[0][1:4:2] == ["loss ↓", "exact match ↑"]


def test_an_variant_that_failed_is_said_in_the_table_and_below_it():
    found = outcome(failures=["selected"])
    assert run_rows(found)[1] == ["selected 0011", "failed", "-", "failed", "0.001", "-", "-", "-", "-"]
    assert "selected failed: out of memory" in run_caption(found)


def test_markdown_and_caption():
    text = markdown(run_rows(outcome()))
    assert text.splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert "base model's head is random" in run_caption(replace(outcome(), new_head=True))
    assert "random" not in run_caption(outcome())
    assert "random" not in run_caption(outcome(["selected", "all"]))
    assert markdown([["a|b", "c"], ["x\ny", "1"]]) == "| a\\|b | c |\n| --- | ---: |\n| x y | 1 |\n"


@pytest.fixture
def selection():
    return replace(
        selection_of(tiny("bert"), [2, 3]), importance=(None, 0.1, 0.3, 0.2), undefined={0: "its input is constant"}
    )


def test_the_picture_shows_every_layer_and_what_is_undefined(selection, tmp_path):
    write_importance(selection, tmp_path / "a" / "p.svg")
    text = (tmp_path / "a" / "p.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    for words in ("undefined", "selected", "frozen", "(1 \u2212 CKA)", "layer (from 0, as PEFT counts)"):
        assert words in text
    bars = re.findall(r'chosen: (\w+); layer: (\d)[^"]*" role="graphics-symbol" aria-roledescription="bar"', text)
    assert bars == [("frozen", "1"), ("selected", "2"), ("selected", "3")]  # layer 0 has no height
    for suffix, begins in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        write_importance(selection, tmp_path / f"p{suffix}")
        assert (tmp_path / f"p{suffix}").read_bytes().startswith(begins)
    with pytest.raises(LayersiftError, match=r"unknown kind of picture '.bmp'; known: .png"):
        require_picture(tmp_path / "p.bmp")


def test_a_selection_draws_itself_with_its_intervals(selection):
    sure = replace(
        selection,
        interval=(None, (0.05, 0.15), (0.2, 0.4), (0.1, 0.3)),
        membership=(0.1, 0.2, 0.9, 0.8),
        confidence=0.95,
    )
    rows = sure.plot().to_dict()["data"]["values"]
    assert [(row["low"], row["high"]) for row in rows] == [(None, None), (0.05, 0.15), (0.2, 0.4), (0.1, 0.3)]
    assert [row["chosen"] for row in rows] == ["frozen", "frozen", "selected", "selected"]
    assert rows[0]["note"] == "its input is constant"


@pytest.mark.parametrize("kind", ["tradeoff", "similarity", "variants", "sweep"])
def test_figures_hold_every_variant_that_has_a_score(kind):
    found = {"one": outcome(), "two": outcome(["selected", "all"])}
    spec = draw(kind, found).to_dict()
    rows = [row for values in spec["datasets"].values() for row in values] if "datasets" in spec else []
    rows += spec.get("data", {}).get("values", [])
    for part in [*spec.get("layer", []), *spec.get("vconcat", [])]:
        rows += part.get("data", {}).get("values", [])
        rows += [row for inner in part.get("layer", []) for row in inner.get("data", {}).get("values", [])]
    assert {row["recipe"] for row in rows} == {"one", "two"}
    if kind == "similarity":
        assert len(rows) == 2 * 4
    if kind == "variants":
        wanted = {(r, a, RIGHT[a] / 50) for r, o in found.items() for a in o.variants}
        assert {(row["recipe"], row["variant"], row["score"]) for row in rows} == wanted


def test_a_picture_marks_layers_that_one_dimension_drives_and_names_its_axis():
    selection = replace(
        selection_of(tiny("llama"), [1, 2]),
        metric="cka",
        importance=(None, 0.2, 0.1, 0.05),
        undefined={0: "all outputs are alike"},
        ranking=(1, 2, 3),
        interval=(None, (0.1, 0.3), (0.05, 0.15), (0.0, 0.1)),
        top_dimension_share=(0.9, 0.1, 0.9, 0.5),
    )
    drawn = selection.plot().to_dict()
    rows = drawn["data"]["values"] if "values" in drawn["data"] else next(iter(drawn["datasets"].values()))
    assert [row["mark"] for row in rows] == ["undefined", "", "one dimension", ""]
    assert [row["top"] for row in rows] == [0.0, 0.3, 0.15, 0.1]  # above its interval
    assert "importance (1 \\u2212 CKA)" in json.dumps(drawn)
