"""What is advised within limits, what it is said to take, and what then is trained."""

import json
from dataclasses import replace

import pytest
import yaml

from cli import layersift
from layersift.config.advise import Limits
from layersift.config.data import DataSettings
from layersift.config.model import ModelSource
from layersift.config.recipe import Recipe, read_recipe
from layersift.config.train import TrainSettings
from layersift.experiment import advise as advising
from layersift.experiment.advise import advise
from layersift.experiment.prepare import checked
from layersift.experiment.prices import MARGIN
from layersift.experiment.run import run
from layersift.progress import Reporter
from layersift.report.advice import advice_json, advised_recipe
from layersift.report.words import advice_rows, advice_words

TRAIN = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("advise") / "rows.jsonl"
    rows = [{"text": f"w{i % 7} w{i % 11} w{i % 5}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def prepared(bert_directory, data):
    recipe = Recipe(ModelSource(bert_directory), DataSettings(data), "run", train=TRAIN)
    _, rows = checked(recipe, Reporter())
    return recipe, rows, advising.Prices(recipe, rows)


@pytest.fixture
def advised(prepared, monkeypatch):
    """The advice within some limits, on a machine of a known speed; what has been planned is not planned again."""
    recipe, rows, prices = prepared

    def given(speed=1e9, **limits):
        return advise_with(prices, recipe, rows, monkeypatch, speed, **limits)

    return given


def advise_with(prices, recipe, rows, monkeypatch, speed=1e9, **limits):
    monkeypatch.setattr(advising, "Prices", lambda *_: prices)
    monkeypatch.setattr(prices, "measured_pace", lambda _: speed)
    return advise(recipe, rows, Limits(**limits))


def by_kind(advice):
    return {one.candidate.kind: one for one in reversed(advice.priced)}


def test_without_limits_all_layers_are_advised(advised):
    advice = advised()
    assert advice.recommended.candidate.name == "all layers"
    assert advice.recommended.operations == 1.0
    assert all(one.fits for one in advice.priced)
    assert [one.candidate.kind for one in advice.next_best] == ["lower rank", "rising"]
    costs = by_kind(advice)
    assert costs["lower rank"].parameters < costs["all"].parameters
    halves = next(one for one in advice.priced if one.candidate.name == "the last 2 of 4 layers")
    assert costs["few"].operations < halves.operations < costs["rising"].operations < 1
    assert costs["last"].memory_bytes < costs["rising"].memory_bytes == costs["all"].memory_bytes
    assert {one.adapter_bytes / one.parameters for one in advice.priced} == {4}


def test_memory_is_that_of_the_type_that_is_trained_in(prepared, monkeypatch):
    recipe, rows, prices = prepared
    short = advising.Prices(replace(recipe, model=replace(recipe.model, dtype="bfloat16")), rows)
    assert prices.base == 2 * short.base
    whole = advise_with(short, recipe, rows, monkeypatch).recommended
    above = by_kind(advise_with(prices, recipe, rows, monkeypatch))["all"].memory_bytes - prices.base
    assert 0 < whole.memory_bytes - short.base < above


def test_a_time_leaves_all_layers_for_what_keeps_to_it(advised):
    rising = by_kind(advised())["rising"].operations
    advice = advised(time=f"{rising:.3f}1")
    assert advice.recommended.candidate.kind == "rising"
    shorter = by_kind(advice)["shorter"]
    assert shorter.fits
    assert shorter.operations > rising - 0.13  # of eight steps
    assert by_kind(advice)["all"].misses == (f"time: 1.00 of all layers', {rising:.3f}1 allowed",)
    assert any(line.startswith("It would be all layers but for time") for line in advice_words(advice))
    less = advised(time="0.3")
    assert less.recommended.candidate.kind == "shorter"
    assert all(one.operations <= 0.3 for one in less.priced if one.fits)


def test_hours_count_by_the_speed_of_the_machine(advised):
    whole = by_kind(advised(speed=1e6))["all"].seconds
    assert by_kind(advised(speed=2e6))["all"].seconds == pytest.approx(whole / 2)
    assert advised(speed=1e6, time=f"{whole * 1.01:.6f}s").recommended.candidate.kind == "all"
    assert advised(speed=1e6, time=f"{whole * 0.99:.6f}s").recommended.candidate.kind != "all"


def test_parameters_and_sizes_are_kept_by_lower_ranks(advised):
    whole = by_kind(advised())["all"].parameters
    advice = advised(params=str(whole - 1))
    assert advice.recommended.candidate.name == "all layers at rank 4"
    assert advice.recommended.candidate.settings.alpha == 8  # as large updates as before
    small = advised(adapter_size=f"{4 * advice.recommended.parameters / 1000 - 0.001:.3f}kB")
    assert small.recommended.candidate.name == "all layers at rank 2"


def test_a_memory_is_kept_by_accumulating_then_by_checkpointing(advised):
    whole = by_kind(advised())["all"]
    advice = advised(memory=f"{whole.memory_bytes * MARGIN / 1000 - 0.01:.3f}kB")
    chosen = advice.recommended
    assert chosen.candidate.kind == "all"
    assert chosen.candidate.settings.batch_size < 8
    assert chosen.candidate.settings.batch_size * chosen.candidate.settings.gradient_accumulation == 8
    assert chosen.memory_bytes * MARGIN <= advice.limits.memory_bytes < whole.memory_bytes * MARGIN
    assert chosen.candidate.settings.steps(40) == TRAIN.steps(40)  # the same training
    assert any("the same training in less memory" in line for line in advice_words(advice))


@pytest.mark.slow
def test_where_nothing_fits_it_is_said_by_how_much_and_what_would_help(advised):
    advice = advised(memory="50kB")
    assert advice.recommended is None
    words = advice_words(advice)
    assert words[0] == "Nothing that is known here fits."
    assert any(word.startswith("The least memory is that of ") for word in words)
    told = {word.rpartition(": ")[0]: float(word.rpartition(": ")[2].removesuffix(" GB.")) for word in words[1:]}
    least, packed, *shorter = told.values()
    taken = min(one.memory_bytes for one in advice.priced) / 1e9
    assert least == pytest.approx(taken, rel=0.01)
    assert packed < least
    assert shorter[1] < shorter[0] < least
    assert [name.split()[0] for name in list(told)[1:]] == ["--quantization", "--max-length", "--max-length"]
    assert all("memory: " in row[1] for row in advice_rows(advice)[1:])
    nothing = advised(params="10")
    assert any(word.startswith("The least parameters is that of ") for word in advice_words(nothing))
    assert advice_json(nothing)["words"] == advice_words(nothing)


def test_what_is_advised_is_what_a_run_then_trains(advised, tmp_path):
    for number, limits in enumerate(({"params": "900"}, {"time": "0.75"})):
        advice = advised(**limits)
        values = advised_recipe(advice) | {"output": str(tmp_path / f"run-{number}")}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        recipe = read_recipe(tmp_path / "recipe.yaml")
        assert recipe.train == advice.recommended.candidate.settings
        found = run(replace(recipe, select=replace(recipe.select, max_samples=16)))
        (trained,) = next(results for name, results in found.arms.items() if name != "untouched")
        assert trained.cell.mask == advice.recommended.candidate.mask(4)
        assert trained.trainable_parameters == advice.recommended.parameters
        assert trained.adapter_bytes == pytest.approx(advice.recommended.adapter_bytes, abs=4000)  # names, too


def test_the_command_line_advises_writes_and_overwrites_nothing(bert_directory, data, tmp_path):
    (tmp_path / "out.partial").mkdir()  # of one that was killed while it wrote
    (tmp_path / "out.partial" / "advice.json").write_text("{")
    words = ["advise", bert_directory, "--data", data, "--time", "0.7", "--batch-size", "8", "-o", tmp_path / "out"]
    said = layersift(*words)
    assert said.returncode == 0, said.stderr
    assert "Train " in said.stdout
    assert f"to do it: layersift run {tmp_path / 'out' / 'recipe.yaml'}" in said.stdout
    kept = json.loads((tmp_path / "out" / "advice.json").read_text())
    assert kept["tried_on_these_data"] is False
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"advice.json", "costs.png", "recipe.yaml"}
    assert kept["operations_a_second"] > 0
    assert [c["fits"] for c in kept["candidates"]].count(True) >= 3
    assert (tmp_path / "out" / "costs.png").read_bytes().startswith(b"\x89PNG")
    again = layersift(*words)
    assert again.returncode == 2
    assert "exists" in again.stderr
    bad = layersift(*words[:4], "--time", "soon", "-o", tmp_path / "other")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "time 'soon'" in bad.stderr
    assert not (tmp_path / "other").exists()
