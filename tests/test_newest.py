"""benchmarks/newest.py: what it installs, and how it counts."""

import sys
from pathlib import Path

import real_trainers

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import newest

REPORT = '<testsuites><testsuite tests="7" errors="1" failures="2" skipped="1"/></testsuites>'


def test_errors_count_as_failed():
    assert newest.count_tests(REPORT) == {"passed": 3, "failed": 3, "skipped": 1}


def test_the_newest_have_no_version_but_what_a_trainer_holds_back():
    assert real_trainers.newest("mlx") == ["mlx-lm", "mlx", "mlx-cpu"]
    assert real_trainers.newest("llamafactory")[:2] == ["llamafactory", "trl==0.24.0"]
