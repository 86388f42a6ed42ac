"""The evidence pages say what the committed files hold, and nothing else."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from evidence_reinforcement import rewards, sums
from layersift.config.train import TrainSettings
from layersift.experiment.judge import Trained
from layersift.experiment.oracle import Subset
from layersift.records.runs import Cell, Result
from layersift.statistics.intervals import LOSS, POINTS, Interval, Runs, difference, mean_score
from packed import packed_cells
from pages.measured import RESULTS, beats, held, over_tasks
from pages.rewarded import _apart
from pages.settles import samples_needed, settled, settled_by_chance, top_half
from pages.subsets import Subsets
from trained import together

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "results"
BY_HAND = ("protocol.md", "older-tables.md")


def test_the_pages_are_what_one_command_makes_of_the_committed_files(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "evidence_pages.py"), "--output", str(tmp_path)], check=True
    )
    made = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    there = {path.name: path.read_text() for path in DOCS.glob("*.md") if path.name not in BY_HAND}
    assert made == there
    charts = {path.name for path in (tmp_path / "charts").iterdir()}
    assert charts == {path.name for path in (DOCS / "charts").iterdir()}
    assert all(f"charts/{name}" in "".join(made.values()) for name in charts)


def test_results_stay_small():
    listed = subprocess.run(["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    assert sum((ROOT / name).stat().st_size for name in listed.stdout.split()) < 5.5e6


# What rests on which results, and a word there that says so: the script that made them, or their name.
RESTS = {
    "padding.json": ("docs/speed.md", "benchmarks/padding.py"),
    "random_halves.json": ("docs/results/rules.md", "benchmarks/random_halves.py"),
    "racing.json": ("docs/compare.md", "benchmarks/racing.py"),
    "advice.json": ("docs/results/advice.md", "benchmarks/advice.py"),
    "cache_in_trainers.json": ("docs/speed.md", "benchmarks/cache_in_trainers.py"),
    "criteria/**/*": ("docs/results/older-tables.md", "benchmarks/criteria.py"),
    "default_rates/**/*": ("docs/learning-rates.md", "benchmarks/default_rates.py"),
    "evidence/gemma3-code/**/*": ("docs/results/half.md", "--only gemma3-code"),
    "evidence/gemma3-gsm8k/**/*": ("docs/results/half.md", "--only gemma3-gsm8k"),
    "evidence/minilm-bbc/**/*": ("docs/results/half.md", "--only minilm-bbc"),
    "evidence/minilm-docstrings/**/*": ("docs/results/half.md", "--only minilm-docstrings"),
    "evidence/minilm-steps/**/*": ("docs/results/half.md", "--only minilm-steps"),
    "evidence/*-conditions/**/*": ("docs/results/conditions.md", "benchmarks/evidence_conditions.py"),
    "evidence/*-subsets/**/*": ("docs/results/position.md", "benchmarks/evidence_subsets.py"),
    "evidence/power.*": ("docs/results/protocol.md", "benchmarks/evidence_power.py"),
    "evidence/reinforcement.json": ("docs/results/reinforcement.md", "benchmarks/evidence_reinforcement.py"),
    "evidence/smollm2-code/**/*": ("docs/results/half.md", "--only smollm2-code"),
    "evidence/smollm2-code-short/**/*": ("docs/results/half.md", "--only smollm2-code-short"),
    "evidence/smollm2-gsm8k/**/*": ("docs/results/half.md", "--only smollm2-gsm8k"),
    "evidence/untrained.json": ("docs/results/samples.md", "benchmarks/evidence_untrained.py"),
    "gemma3-gsm8k-harness.json": ("docs/benchmarks.md", "gemma3-gsm8k-harness.json"),
    "figure-*.png": ("docs/paper.md", "figure-"),
    "heap_growth.json": ("docs/results/older-tables.md", "benchmarks/heap_growth.py"),
    "half_of_the_layers.md": ("docs/learning-rates.md", "benchmarks/half_of_the_layers.py"),
    "interval_coverage.json": ("docs/compare.md", "benchmarks/interval_coverage.py"),
    "minilm-*": ("docs/results/older-tables.md", "benchmarks/held_or_not.py"),
    "mutation*": ("CONTRIBUTING.md", "benchmarks/mutation.py"),
    "paper-*": ("docs/paper.md", "benchmarks/paper_forms.py"),
    "paper_size-*": ("docs/costs.md", "benchmarks/paper_size.py"),
    "planning_cost.json": ("docs/speed.md", "benchmarks/planning_cost.py"),
    "ray_overhead.json": ("docs/how-to/several-machines.md", "benchmarks/ray_overhead.py"),
    "plan_accuracy.json": ("docs/costs.md", "benchmarks/plan_accuracy.py"),
    "scoring_cost.json": ("docs/costs.md", "benchmarks/scoring_cost.py"),
    "calculators.json": ("docs/costs.md", "benchmarks/calculators.py"),
    "shared_prompt.json": ("docs/speed.md", "benchmarks/shared_prompt.py"),
    "smollm2-gsm8k-harness.json": ("docs/benchmarks.md", "smollm2-gsm8k-harness.json"),
    "smollm2-gsm8k.*": ("docs/results/older-tables.md", "benchmarks/held_or_not.py"),
    "smollm2-humaneval.json": ("docs/benchmarks.md", "smollm2-humaneval.json"),
    "strategies/**/*": ("docs/results/older-tables.md", "benchmarks/strategies.py"),
    "training_cost-*": ("docs/costs.md", "benchmarks/training_cost.py"),
    "until-stable.md": ("docs/method.md", "benchmarks/until_stable.py"),
}


def test_every_result_is_used_by_a_page():
    listed = subprocess.run(["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    results = ROOT / "benchmarks" / "results"
    used = {path for pattern in RESTS for path in results.glob(pattern)}
    assert [name for name in listed.stdout.split() if ROOT / name not in used] == []
    for pattern, (page, word) in RESTS.items():
        assert next(results.glob(pattern), None) is not None, pattern
        assert word in (ROOT / page).read_text(), (pattern, page)


def between(low, high):
    return Interval((low + high) / 2, low, high, "")


@pytest.mark.parametrize(
    ("low", "high", "unit", "word"),
    [
        (-0.019, 0.01, POINTS, "non-inferior"),
        (-0.021, 0.01, POINTS, "inconclusive"),
        (-0.03, -0.001, POINTS, "worse"),
        (-0.015, -0.001, POINTS, "worse, within the margin"),
        (-0.01, 0.019, LOSS, "non-inferior"),
        (-0.01, 0.021, LOSS, "inconclusive"),
        (0.001, 0.03, LOSS, "worse"),
        (0.001, 0.015, LOSS, "worse, within the margin"),
    ],
)
def test_the_protocols_words(low, high, unit, word):
    assert held(between(low, high), unit) == word


def test_what_beats_what_depends_on_whether_more_is_better():
    above, below, around = between(0.01, 0.02), between(-0.02, -0.01), between(-0.01, 0.02)
    assert [beats(one, POINTS) for one in (above, below, around)] == ["better", "worse", "inconclusive"]
    assert [beats(one, LOSS) for one in (above, below, around)] == ["worse", "better", "inconclusive"]


def test_over_tasks_the_interval_is_students_of_their_values():
    values = [-0.01, 0.004, 0.02, -0.002]
    found = over_tasks([between(v - 0.01, v + 0.01) for v in values] + [None])
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert over_tasks([between(0, 1)]) is None
    error = stats.sem(values)
    assert found.visible == pytest.approx(error * (stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)))


def trained_twice(outcomes):
    cell = Cell("01", 0, TrainSettings())
    results = [Result(cell=cell, metrics={"accuracy": 0.5}, samples=3, outcomes=tuple(of)) for of in outcomes]
    return together(*(Trained((0,), {cell: result}, {}) for result in results))


def test_random_halves_are_those_that_were_trained_and_no_other_rows():
    kept = json.loads((RESULTS / "random_halves.json").read_text())
    for name, of in kept["tasks"].items():
        layers = len(of["masks"]["cka"])
        drawn = of["masks"]["random"]
        assert len(set(drawn)) == 5
        assert {mask.count("1") for mask in drawn} == {layers // 2}
        assert not {of["masks"]["cka"], of["masks"]["last"]} & set(drawn)
        cells = packed_cells(RESULTS / "default_rates" / name).values()
        rates = {cell["cell"]["train"]["learning_rate"] for cell in cells if cell["cell"]["mask"] in drawn}
        assert len(rates) == 1
        for place, mask in enumerate(drawn):
            scores = [cell["metrics"]["accuracy test"] for cell in cells if cell["cell"]["mask"] == mask]
            assert len(scores) == kept["seeds"]
            assert of["draws"][place] == pytest.approx(np.mean(scores))
        assert of["scores"]["random"] == pytest.approx(np.mean(of["draws"]))
        apart = of["scores"]["last"] - of["scores"]["random"]
        assert of["from_random"]["last"]["value"] == pytest.approx(apart)


def test_a_training_that_two_files_hold_counts_once():
    assert [cell.seed for cell in trained_twice([(1, 0, 1), (1, 1, 0)]).results] == [0, 1]
    assert [cell.seed for cell in trained_twice([(1, 0, 1), (1, 0, 1)]).results] == [0]


def test_a_difference_of_differences_is_paired_by_seed_and_row():
    rng = np.random.default_rng(0)
    of = {name: rng.random((4, 30)) for name in ("a", "b", "c", "d")}
    runs = {n: Runs({s: v[s].mean() for s in range(4)}, dict(enumerate(v)), True, asked=4) for n, v in of.items()}
    apart = difference(_apart(runs, ("a", "b")), _apart(runs, ("c", "d")))
    by_hand = (of["a"] - of["b"]) - (of["c"] - of["d"])
    alone = Runs({s: by_hand[s].mean() for s in range(4)}, dict(enumerate(by_hand)), True, asked=4)
    assert apart.value == pytest.approx(by_hand.mean())
    expected = mean_score(alone)
    assert (apart.low, apart.high) == pytest.approx((expected.low, expected.high))


def test_five_halves_at_random_are_often_called_settled_where_there_are_few_layers():
    halves = [frozenset(half) for half in itertools.combinations(range(4), 2)]  # any two of these share a layer or none
    meet = sum(
        max(sum(len(one & other) >= 1 for other in five) for one in five) >= 4
        for five in itertools.product(halves, repeat=5)
    )
    assert settled_by_chance(4) == pytest.approx(meet / len(halves) ** 5, abs=0.02)


def test_a_selection_has_settled_when_four_of_five_choose_alike_but_for_one_layer():
    same, but_one, other = [9, 8, 7, 1, 1, 1], [9, 8, 1, 7, 1, 1], [1, 1, 1, 7, 8, 9]
    assert top_half([None, 3, 2, 1, None, 0.5]) == {1, 2, 3}
    assert settled([same, same, but_one, but_one, other]) == 4
    assert settled([same, same, but_one, other, other]) == 3
    often, seldom = [same] * 4 + [other], [same] * 3 + [other] * 2
    assert samples_needed({"16": seldom, "32": often, "64": often}) == 32
    assert samples_needed({"16": often, "32": seldom, "64": often}) == 64  # from which on
    assert samples_needed({"16": often, "32": seldom}) is None


class Known(Subsets):
    """Subsets of two of four layers with known scores."""

    def of_size(self, size):
        scores = {"0101": 0.9, "0110": 0.8, "1010": 0.7, "1001": 0.7, "0011": 0.7, "1100": 0.5}
        return [Subset(mask, (score,)) for mask, score in scores.items()]


def test_where_a_choice_lies_among_all_subsets():
    known = Known("", "", "", "")
    assert known.placed("0101").percentile == 100
    assert known.placed("1100").percentile == 0
    assert known.placed("1010").percentile == pytest.approx(100 * (1 + 0.5 * 2) / 5)  # two others score as much
    assert known.placed("0110").lost == pytest.approx(0.1)
    assert known.from_the_others("0011") == pytest.approx(0.7 - (0.5 + 0.7 + 0.7 + 0.8 + 0.9) / 5)


def test_a_sum_is_rewarded_where_it_is_right_and_ends_its_line():
    written = [" 17\n", " 17\n18 + 2", " 17", " 170\n", "17\n", " 16\n", "\n17\n"]
    assert rewards(written, [" 17\n"] * 7) == [1, 1, 0, 0, 0, 0, 0]
    training, chosen_by, judged = sums()
    pairs = [{row["prompt"] for row in some} for some in (training, chosen_by, judged)]
    assert sum(map(len, pairs)) == len(set.union(*pairs))
    for row in training:
        assert rewards([row["completion"]], [row["completion"]]) == [1]
