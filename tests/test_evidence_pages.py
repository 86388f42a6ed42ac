"""The evidence pages say what the committed files hold, and nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from layersift.statistics.intervals import Interval
from layersift.statistics.verdicts import LOSS, POINTS
from pages.measured import beats, held, over_tasks
from pages.settles import samples_needed, settled, top_half

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "results"


def test_the_pages_are_what_one_command_makes_of_the_committed_files(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "evidence_pages.py"), "--output", str(tmp_path)], check=True
    )
    made = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    there = {path.name: path.read_text() for path in DOCS.glob("*.md") if path.name != "protocol.md"}
    assert made == there
    charts = {path.name for path in (tmp_path / "charts").iterdir()}
    assert charts == {path.name for path in (DOCS / "charts").iterdir()}
    assert all(f"charts/{name}" in "".join(made.values()) for name in charts)


def test_results_stay_small():
    listed = subprocess.run(["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    assert sum((ROOT / name).stat().st_size for name in listed.stdout.split()) < 5e6


# What every comparison's or oracle's directory has: its trainings, rows and scores, and its tables.
KEPT = {"cells.json", "compare.json", "grid.json", "levels.json", "oracle.json", "oracle.md", "scores.json", "tables.md"}


def test_no_result_is_without_a_page_or_a_script_that_reads_it():
    listed = subprocess.run(["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    files = [Path(name) for name in listed.stdout.split()]
    readers = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    readers += [*(ROOT / "benchmarks").rglob("*.py"), ROOT / "tests" / "test_readme.py"]
    said = "".join(path.read_text() for path in readers)

    def used(file):
        if file.name in KEPT:  # of a place that is named
            return any(f'"{parent}"' in said or f"{parent}/" in said for parent in (file.parent.name, file.parts[-3]))
        stem, _, rest = file.name.partition(".")
        return file.name in said or (stem in said and (not rest or f'"{rest}"' in said)) or f"{stem.split('-')[0]}-*" in said

    assert [str(file) for file in files if not used(file)] == []


def between(low, high):
    return Interval((low + high) / 2, low, high, "")


@pytest.mark.parametrize(
    ("low", "high", "unit", "word"),
    [
        (-0.019, 0.01, POINTS, "held"),
        (-0.021, 0.01, POINTS, "not told"),
        (-0.03, -0.001, POINTS, "lost"),
        (-0.015, -0.001, POINTS, "lost, within the margin"),
        (-0.01, 0.019, LOSS, "held"),
        (-0.01, 0.021, LOSS, "not told"),
        (0.001, 0.03, LOSS, "lost"),
        (0.001, 0.015, LOSS, "lost, within the margin"),
    ],
)
def test_the_protocols_words(low, high, unit, word):
    assert held(between(low, high), unit) == word


def test_what_beats_what_depends_on_whether_more_is_better():
    above, below, around = between(0.01, 0.02), between(-0.02, -0.01), between(-0.01, 0.02)
    assert [beats(one, POINTS) for one in (above, below, around)] == ["beats it", "is beaten", "not told"]
    assert [beats(one, LOSS) for one in (above, below, around)] == ["is beaten", "beats it", "not told"]


def test_over_tasks_the_interval_is_students_of_their_values():
    values = [-0.01, 0.004, 0.02, -0.002]
    found = over_tasks([between(v - 0.01, v + 0.01) for v in values] + [None])
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert over_tasks([between(0, 1)]) is None


def test_a_selection_has_settled_when_four_of_five_choose_alike_but_for_one_layer():
    same, but_one, other = [9, 8, 7, 1, 1, 1], [9, 8, 1, 7, 1, 1], [1, 1, 1, 7, 8, 9]
    assert top_half([None, 3, 2, 1, None, 0.5]) == {1, 2, 3}
    assert settled([same, same, but_one, but_one, other]) == 4
    assert settled([same, same, but_one, other, other]) == 3
    often, seldom = [same] * 4 + [other], [same] * 3 + [other] * 2
    assert samples_needed({"16": seldom, "32": often, "64": often}) == 32
    assert samples_needed({"16": often, "32": seldom, "64": often}) == 64  # from which on
    assert samples_needed({"16": often, "32": seldom}) is None
