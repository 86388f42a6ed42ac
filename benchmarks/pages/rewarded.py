"""Question 10: does placement matter more in reinforcement learning?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import Interval, Runs, difference, mean_score
from layersift.statistics.verdicts import POINTS
from pages.measured import RESULTS, beats
from pages.page import Page, intervals, picture_of, table

WAYS = {"grpo": "rewarded (GRPO)", "sft": "supervised"}
NAMES = {"all": "all layers", "last": "the last half", "cka": "CKA's half", "random": "a random half"}
NAMES |= {"gradient": "the gradient's half"}
FEWEST_SEEDS = 3
CHANGES = """\
A longer training, a harder task, a larger model, more seeds: these are a few steps of a small model on sums. A learning
rate for each placement: there is one for each way, chosen by a random half. The supervised answers are right from the
first step, so that at as many steps they teach more than rewards do."""


def trainings() -> dict[str, Any]:
    """What was kept of all of them."""
    return read_json(RESULTS / "evidence" / "reinforcement.json", "trainings")


def runs(kept: Mapping[str, Any], way: str, placement: str) -> Runs:
    """A placement's expected rewards, by seed and test row."""
    some = [r for r in kept["runs"] if (r["way"], r["placement"], r["judged"]) == (way, placement, "test")]
    return Runs(
        scores={run["seed"]: run["score"] for run in some},
        outcomes={run["seed"]: np.array(run["outcomes"]) for run in some},
        averages=True,
        asked=len(some),
        limits=(0.0, 1.0),
    )


def done() -> bool:
    """Whether every placement has been trained in both ways, with seeds enough for an interval."""
    kept = trainings()
    return all(len(runs(kept, way, name).scores) >= FEWEST_SEEDS for way in WAYS for name in NAMES)


def page() -> Page:
    """Every placement in both ways, and which of them can be told apart."""
    kept = trainings()
    of = {way: {name: runs(kept, way, name) for name in NAMES} for way in WAYS}
    masks = {(r["way"], r["placement"]): r["mask"] for r in kept["runs"]}
    rows, drawn, told_apart, pairs = [], [], {}, {}
    for way, words in WAYS.items():
        for name, placement in NAMES.items():
            apart = None if name == "all" else difference(of[way][name], of[way]["all"])
            score = mean_score(of[way][name])
            layers = masks[way, name] if name != "all" else "-"
            rows.append([words, placement, layers, POINTS.tell(score.value), told(apart, POINTS)])
            drawn += [(placement, words, apart)] if apart is not None else []
        some = {pair: difference(of[way][pair[0]], of[way][pair[1]]) for pair in combinations(NAMES, 2)}
        pairs[way] = some
        told_apart[way] = sum(beats(found, POINTS) != "not told" for found in some.values())
    return Page(
        name="reinforcement",
        question="Does placement matter more in reinforcement learning?",
        answer=_sentence(told_apart, pairs),
        sections=[
            _words(kept, of),
            table(["", "placement", "layers", "expected reward", "from all layers"], rows),
            picture_of("reinforcement", "Placements from all layers, rewarded and supervised"),
            "**Every two placements**, the first from the second:",
            table(
                ["placements", *WAYS.values()],
                [
                    [f"{NAMES[a]}, {NAMES[b]}", *(told(pairs[way][a, b], POINTS) for way in WAYS)]
                    for a, b in combinations(NAMES, 2)
                ],
            ),
        ],
        commands=["python benchmarks/evidence_reinforcement.py MODELS --jobs 2"],
        changes=CHANGES,
        charts={"reinforcement": intervals(drawn, POINTS, "points of expected reward, from all layers")},
    )


def _words(kept: Mapping[str, Any], of: Mapping[str, Mapping[str, Runs]]) -> str:
    whole = of["grpo"]["all"]
    judged = [run for run in kept["runs"] if run["judged"] == "test"]
    rates = {way: next(f"{run['rate']:g}" for run in judged if run["way"] == way) for way in WAYS}
    seconds = {way: np.mean([run["seconds"] for run in judged if run["way"] == way]) for way in WAYS}
    rows = len(next(iter(whole.outcomes.values())))
    return (
        f"SmolLM2-135M adds numbers up to 30. A completion is rewarded with 1 where it is the right sum and ends its "
        f"line, else with nothing; GRPO by TRL, {kept['steps']} steps of {kept['a_step']} completions, rank 16 on all "
        f"linear maps, {len(whole.scores)} seeds. Beside it the same placements trained on the right answers for as "
        f"many steps. Learning rates {rates['grpo']} and {rates['sft']}, by a random half on other sums. The expected "
        f"reward, which is the probability of the right answer, over {rows} sums that were not trained on, in points; "
        f"before training it is {POINTS.tell(judged[0]['before'])}. Two cores took {seconds['grpo'] / 60:.0f} and "
        f"{seconds['sft'] / 60:.0f} minutes for each, two at once."
    )


def _sentence(told_apart: Mapping[str, int], pairs: Mapping[str, Mapping[tuple[str, str], Interval | None]]) -> str:
    of = len(pairs["grpo"])
    widest = {way: max(abs(found.value) for found in pairs[way].values() if found is not None) for way in WAYS}
    more = told_apart["grpo"] > told_apart["sft"]
    begins = "Here it does" if more else "Not seen to"
    return (
        f"{begins}: rewarded, {told_apart['grpo']} of {of} pairs of placements are told apart, the furthest by "
        f"{100 * widest['grpo']:.1f} points; supervised on the same sums {told_apart['sft']}, the furthest by "
        f"{100 * widest['sft']:.1f}."
    )
