"""Successive halving on the user's own rows: who takes part, who goes on, what is spent, and what a kill changes."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from cli import layersift
from layersift.advise import adviser as advising
from layersift.advise import trial as trials
from layersift.advise.adviser import advise
from layersift.advise.candidates import ALL, FREEZING, HALF, LAST, LOWER_RANK, Prices
from layersift.advise.trial import FEWEST_STEPS, entrants, ranking, share_within
from layersift.config.limits import Limits
from layersift.config.recipe import DataSettings, ModelSource, Recipe
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError
from layersift.experiment.prepare import checked
from layersift.progress import Reporter
from layersift.records.runs import Result, Variant
from layersift.report.advice import advice_json, write_advice
from layersift.report.advice_text import advice_words
from variants import cell_of

TRAIN = TrainSettings(epochs=6, batch_size=8)
SAMPLES = 800  # a hundred steps an epoch


def way(name, kind):
    return Variant(name, "11", TRAIN, kind)


COSTS = {"all": 1.0, "half rank": 1.0, "quarter rank": 1.0, "freezing": 0.6, "half": 0.5, "last": 0.3}
WAYS = [
    way("all", ALL),
    way("half rank", LOWER_RANK),
    way("quarter rank", LOWER_RANK),
    way("freezing", FREEZING),
    way("half", HALF),
    way("last", LAST),
]


def flops_of(of, part):
    return COSTS[of.name] * part


@pytest.mark.parametrize("budget", [0.01, 0.3, 2.0, 10.0])
def test_what_is_spent_is_within_what_may_be(budget):
    part = share_within(budget, WAYS, flops_of)
    spent = sum(flops_of(way, part) for way in WAYS)
    assert spent <= budget
    assert part == 1.0 or spent > 0.999 * budget


def test_as_many_take_part_as_can_be_trained_for_long_enough_of_each_kind_first():
    assert entrants(WAYS, 1.0, SAMPLES, flops_of) == WAYS
    # Four of 3.1 flops in two rounds: a share of 30 of 600 steps for each.
    four = entrants(WAYS, 2 * 3.1 * FEWEST_STEPS / 600, SAMPLES, flops_of)
    assert [way.kind for way in four] == [ALL, LOWER_RANK, FREEZING, HALF]
    two = entrants(WAYS, 2 * 3.1 * (FEWEST_STEPS - 1.5) / 600, SAMPLES, flops_of)
    assert [way.kind for way in two] == [ALL, LOWER_RANK]


def test_a_trial_that_says_nothing_is_refused_with_what_would_do():
    with pytest.raises(LayersiftError, match=r"trial 1%: that is less than 30 steps .* (\d+)% would be enough") as told:
        entrants(WAYS, 0.01, SAMPLES, flops_of)
    enough = int(str(told.value).split("; ")[1].partition("%")[0])
    assert entrants(WAYS, enough / 100, SAMPLES, flops_of) == WAYS[:2]
    assert enough <= 11


def results(**right):
    """So many of a thousand rows right, always the first ones."""
    return {
        name: Result(cell_of("11"), {"accuracy": n / 1000}, 1000, (1.0,) * n + (0.0,) * (1000 - n))
        for name, n in right.items()
    }


def test_what_cannot_be_told_from_the_best_stays_in_its_order():
    assert ranking(results(all=900, rank=901, last=902)) == ["all", "rank", "last"]
    assert ranking(results(all=700, rank=800, last=902, few=901)) == ["last", "few", "rank", "all"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("trial") / "rows.jsonl"
    rows = [{"text": f"w{i % 7} w{i % 11} w{i % 5}", "label": "yes" if i % 7 < 3 else "no"} for i in range(150)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def priced(bert_directory, data):
    recipe = Recipe(ModelSource(bert_directory), DataSettings(data), "run", train=TRAIN)
    _, _, rows = checked(recipe, Reporter())
    return recipe, rows, Prices(recipe, rows)


@pytest.fixture
def advised(priced, monkeypatch, tmp_path):
    """The advice with a trial; what has been planned is not planned again."""
    recipe, rows, prices = priced
    monkeypatch.setattr(advising, "Prices", lambda *_: prices)
    monkeypatch.setattr(prices, "measured_pace", lambda _: 1e9)
    return lambda share=10.0, **limits: advise(recipe, rows, Limits(**limits), trial=share, place=tmp_path / "trial")


@pytest.mark.slow
def test_what_does_better_on_the_rows_held_back_is_advised(advised, monkeypatch):
    """The trainings are real; their scores are made, so that it is known which is the best: the last two layers."""
    seen = []
    real = trials.run_cells

    def judged(recipe, jobs, *rest):
        found, failures = real(recipe, jobs, *rest)
        seen.append([job.cell for job in jobs])
        made = {}
        for cell, result in found.items():
            better = cell.mask == "0011" and cell.train.rank == 8
            right = round(len(result.outcomes) * (1.0 if better else 0.5))
            outcomes = (1.0,) * right + (0.0,) * (len(result.outcomes) - right)
            made[cell] = replace(result, metrics={"accuracy": right / len(outcomes)}, outcomes=outcomes)
        return made, failures

    monkeypatch.setattr(trials, "run_cells", judged)
    advice = advised(30.0, params="1M")
    trial = advice.trial
    name = "last 2 of 4 layers"
    assert [len(held.tried) for held in trial.rounds] == [8, 4, 2]
    epochs = [held.share for held in trial.rounds]
    assert epochs[0] <= epochs[1] <= epochs[2] <= 1
    assert advice.recommended.variant.name == name
    assert trial.rounds[-1].tried[0].name == name
    assert trial.spent <= 30
    assert trial.samples == 30
    assert all(t.from_first.high < 0 for held in trial.rounds for t in held.tried[1:])
    assert {cell.seed for cells in seen for cell in cells} == {0}
    # What did not take part, or went out, follows in the order of the rounds.
    names = [one.variant.name for one in advice.priced]
    assert names[: len(trial.order)] == trial.order
    words = advice_words(advice)
    assert any(f"{trial.spent:.2f} FLOPs" in line for line in words)
    assert len(words) <= 12
    assert advice_json(advice)["trial"]["samples"] == 30


@pytest.mark.slow
def test_each_variant_is_tried_as_it_would_be_trained(advised, monkeypatch):
    """Rate, modules and dropout below the first trained layer are those of the variant."""
    trained = {}
    real = trials.run_cells

    def seen(recipe, jobs, *rest):
        trained.update({job.cell: job.cell.train for job in jobs})
        return real(recipe, jobs, *rest)

    monkeypatch.setattr(trials, "run_cells", seen)
    advice = advised(6.0)
    settings = {(one.variant.mask, one.variant.train.strategy): one.variant.train for one in advice.priced}
    assert {cell.mask for cell in trained} > {"1111"}
    for cell, tried in trained.items():
        assert replace(settings[cell.mask, tried.strategy], epochs=tried.epochs) == tried


def test_an_advice_without_a_trial_leaves_another_ones_trial_alone(priced, monkeypatch, tmp_path):
    recipe, rows, prices = priced
    monkeypatch.setattr(advising, "Prices", lambda *_: prices)
    monkeypatch.setattr(prices, "measured_pace", lambda _: 1e9)
    left = tmp_path / "advice.trial"
    left.mkdir()
    (left / "pace.json").write_text('{"flops_a_second": 5.0}')
    advice = advise(recipe, rows, Limits(), place=left)
    write_advice(advice, tmp_path / "advice")
    assert advice.flops_a_second == 1e9
    assert (left / "pace.json").exists()
    assert not (tmp_path / "advice" / "trial").exists()


@pytest.mark.slow
def test_where_there_is_no_significant_difference_it_is_said(advised):
    advice = advised(2.0, params="2500")
    first, second = advice.trial.rounds[-1].tried
    words = " ".join(line.strip() for line in advice_words(advice))
    assert all(one.parameters <= 2500 for one in advice.priced if one.variant.name in advice.trial.order)
    assert ("no significant difference" in words) == second.from_first.holds_zero
    assert f"{first.name} {100 * first.score:.1f}" in words
    assert second.name in words


@pytest.mark.slow
def test_a_trial_that_is_killed_goes_on_to_the_same_advice(bert_directory, data, tmp_path):
    flags = ["--data", data, "--batch-size", "8", "--epochs", "4", "--learning-rate", "0.01", "--quiet"]
    flags += ["--params", "2500", "--trial", "600%"]
    whole = layersift("advise", bert_directory, *flags, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    words = [sys.executable, "-m", "layersift", "advise", bert_directory, *flags, "-o", str(tmp_path / "killed")]
    cells = tmp_path / "killed.trial" / "cells"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (cells.is_dir() and len(list(cells.glob("*.json"))) >= 3):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed").exists()
    before = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    again = layersift("advise", bert_directory, *flags, "-o", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    kept, expected = (json.loads((tmp_path / n / "advice.json").read_text()) for n in ("killed", "whole"))
    assert kept["trial"]["rounds"] == expected["trial"]["rounds"]
    assert kept["tried_on_these_data"] is True
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {
        "advice.json",
        "advice.html",
        "recipe.yaml",
        "trial",
    }
    assert not (tmp_path / "killed.trial").exists()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "trial" / "cells").glob("*.json")}
    assert before.items() <= after.items()  # what was finished was not done again


def test_a_trial_has_to_be_a_share(bert_directory, data, tmp_path):
    bad = layersift("advise", bert_directory, "--data", data, "--trial", "much", "-o", tmp_path / "out")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "trial 'much': expected a share such as 10% or 0.1" in bad.stderr
