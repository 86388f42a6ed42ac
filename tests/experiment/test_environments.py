"""Times are compared only among trainings of one device and as many threads."""

import pytest

from layersift.experiment.judge import Trained, judge, times_left_out
from layersift.records.runs import Environment, Result
from variants import choice_of


def judged(*threads):
    """Two choices, each trained with so many threads, and the base model elsewhere."""
    choices = [choice_of(name, 1, [mask]) for name, mask in (("last", "01"), ("first", "10"))]
    untouched = choice_of("base", 0, [""])
    results = {}
    for choice, count in zip(choices, threads, strict=True):
        cell = choice.variants[0].cell(0)
        made = Environment({}, "cpu", count)
        results[cell] = Result(
            cell, {"accuracy": 0.5}, 2, (0.0, 1.0), trainable_parameters=4, train_seconds=3.0, made=made
        )
    cell = untouched.variants[0].cell(0)
    results[cell] = Result(cell, {"accuracy": 0.5}, 2, (0.0, 1.0), made=Environment({}, "cpu", 64))
    return judge([*choices, untouched], Trained((0,), results, {}))


@pytest.mark.parametrize(("threads", "seconds"), [((2, 2), [3.0, 3.0, None]), ((2, 4), [None, None, None])])
def test_times_of_other_threads_are_left_out_and_it_is_known(threads, seconds):
    rows = judged(*threads)
    assert [row.seconds for row in rows] == seconds
    assert times_left_out(rows) == (threads == (2, 4))
