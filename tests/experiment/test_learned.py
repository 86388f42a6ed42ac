"""Where no row beats what needs no training, nothing is ranked."""

from dataclasses import replace

import numpy as np
import pytest

from layersift.evaluation.metrics import Majority
from layersift.experiment.choices import ALL, BASE
from layersift.experiment.judge import Trained, nothing_learned
from layersift.records.runs import Result
from variants import choice_of

MAJORITY = Majority("no", {"": 0.6})


def choice(name, mask):
    return choice_of(name, 2, [mask])


ROWS = [choice("last", "0011"), choice(ALL, "1111"), choice(BASE, "")]


def trained(outcomes, metric="accuracy", seeds=(0,), scores=None):
    """Results by name; the outcomes of each row, the same with every seed."""
    results = {}
    for row in ROWS:
        if row.name not in outcomes:
            continue
        for seed in seeds:
            cell, of = row.variants[0].cell(seed), tuple(map(float, outcomes[row.name]))
            score = float(np.mean(of)) if scores is None else scores[row.name]
            results[cell] = Result(cell, {metric: score}, len(of), of)
    return Trained(seeds, results, {})


def right(count, of=100):
    return [1.0] * count + [0.0] * (of - count)


def test_rows_that_score_as_the_most_common_class_have_learned_nothing():
    none = trained({"last": right(60), ALL: right(62), BASE: right(10)})
    said = nothing_learned(ROWS, none, MAJORITY)
    assert "'no'" in said
    assert "60.0" in said
    assert nothing_learned(ROWS, trained({"last": right(60), ALL: right(90), BASE: right(10)}), MAJORITY) is None
    # Above it, but not beyond its interval.
    assert nothing_learned(ROWS, trained({"last": right(66)}), MAJORITY) is not None
    assert nothing_learned(ROWS, trained({"last": right(66 * 20, 2000)}), MAJORITY) is None


def test_losses_are_held_against_the_base_model():
    rng = np.random.default_rng(0)
    base = 2 + rng.normal(size=100)
    worse, better = base + 0.1, base - 0.5 + 0.1 * rng.normal(size=100)
    assert "base model" in nothing_learned(ROWS, trained({"last": worse, BASE: base}, "loss"), None)
    assert nothing_learned(ROWS, trained({"last": worse, ALL: better, BASE: base}, "loss"), None) is None
    assert nothing_learned(ROWS, trained({"last": worse, ALL: worse}, "loss"), None) is None  # nothing to beat


def test_a_score_without_an_interval_decides_only_where_it_is_no_better():
    outcomes = {"last": right(5, 10), BASE: right(5, 10)}
    better = trained(outcomes, "pearson", scores={"last": 0.8, BASE: 0.1})
    worse = trained(outcomes, "pearson", scores={"last": 0.0, BASE: 0.1})
    assert nothing_learned(ROWS, better, None) is None
    assert nothing_learned(ROWS, worse, None) is not None


@pytest.mark.parametrize(("score", "learned"), [(0.0, False), (0.5, True)])
def test_a_constant_class_has_no_correlation(score, learned):
    of = trained({"last": right(50)}, "matthews", scores={"last": score})
    assert (nothing_learned(ROWS, of, MAJORITY) is None) == learned


def test_the_class_that_counts_is_that_of_the_first_test_rows():
    of = trained({"last": right(60)}, "accuracy news")
    assert nothing_learned(ROWS, of, replace(MAJORITY, accuracy={"news": 0.6, "mail": 0.1})) is not None
    assert nothing_learned(ROWS, of, replace(MAJORITY, accuracy={"news": 0.1, "mail": 0.6})) is None
