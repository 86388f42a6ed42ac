"""Quantities as people write them: what a unit multiplies by, and what is refused."""

import pytest

from layersift.config.quantities import Objective, parameter_count, parse_objective
from layersift.errors import SelectionError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1k", 1_000),
        ("1K", 1_000),
        ("800k", 800_000),
        ("1M", 1_000_000),
        ("1.5m", 1_500_000),
        ("1B", 1_000_000_000),
        ("0.25b", 250_000_000),
        ("2000000", 2_000_000),
        ("2_000_000", 2_000_000),
        (" 12 ", 12),
        (7, 7),
        (1, 1),
        ("0.001k", 1),
        ("1.6", 2),  # to the nearest whole parameter
    ],
)
def test_units_are_powers_of_a_thousand(text, count):
    assert parameter_count(text) == count


@pytest.mark.parametrize("wrong", ["0", "0.4", "", "M", "-2M", "2 M", "2MM", "2G", "1e6", "1.M", ".5M", 0, -3])
def test_what_is_no_number_of_parameters_is_refused(wrong):
    with pytest.raises(SelectionError, match="expected a number of parameters"):
        parameter_count(wrong)


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("time=1", Objective("time", 1.0)),
        ("memory=1.0", Objective("memory", 1.0)),
        ("memory=0.25", Objective("memory", 0.25)),
        ("time=1e-3", Objective("time", 0.001)),
    ],
)
def test_an_objective_is_a_share_of_time_or_memory(text, objective):
    assert parse_objective(text) == objective


@pytest.mark.parametrize(
    "wrong", ["time=0", "time=1.0001", "time=-0.5", "memory=60%", "time=nan", "time=inf", "time", "time=", "flops=0.5"]
)
def test_a_share_outside_of_zero_to_one_is_refused(wrong):
    with pytest.raises(SelectionError, match="expected time=SHARE or memory=SHARE"):
        parse_objective(wrong)
