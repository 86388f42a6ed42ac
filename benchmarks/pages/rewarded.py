"""Question 10: does placement matter more in reinforcement learning?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS, Interval, Runs, difference, mean_score
from pages.measured import RESULTS, beats, visible
from pages.page import Page, intervals, picture_of, table

WAYS = {"grpo": "by rewards (GRPO)", "sft": "by right answers"}
NAMES = {"all": "all layers", "last": "the last half", "cka": "CKA's half", "random": "a random half"}
NAMES |= {"gradient": "the gradient's half"}
CHANGES = """\
A longer training, a harder task, a larger model, more seeds, more random halves, a learning rate for each placement.
Supervised answers are right from the first step, so at as many steps they teach more than rewards do."""


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


def page() -> Page:
    """Every placement in both ways, and which of them can be told apart."""
    kept = trainings()
    of = {way: {name: runs(kept, way, name) for name in NAMES} for way in WAYS}
    masks = {(r["way"], r["placement"]): r["mask"] for r in kept["runs"]}
    rows, drawn, pairs = [], [], {}
    for way, words in WAYS.items():
        for name, placement in NAMES.items():
            apart = None if name == "all" else difference(of[way][name], of[way]["all"])
            score = mean_score(of[way][name])
            layers = masks[way, name] if name != "all" else "-"
            rows.append([words, placement, layers, POINTS.tell(score.value), told(apart, POINTS)])
            drawn += [(placement, words, apart)] if apart is not None else []
        pairs[way] = {pair: difference(of[way][pair[0]], of[way][pair[1]]) for pair in combinations(NAMES, 2)}
    more = {pair: difference(_apart(of["grpo"], pair), _apart(of["sft"], pair)) for pair in combinations(NAMES, 2)}
    return Page(
        name="reinforcement",
        question="Does placement matter more in reinforcement learning?",
        answer=_sentence(pairs, more),
        sections=[
            _words(kept, of),
            table(["", "placement", "layers", "expected reward", "from all layers"], rows),
            picture_of("reinforcement", "Placements from all layers, rewarded and supervised"),
            "**Every two placements**, the first from the second:",
            table(
                ["placements", *WAYS.values(), "the first minus the second", "shown"],
                [
                    [
                        f"{NAMES[a]}, {NAMES[b]}",
                        *(told(pairs[way][a, b], POINTS) for way in WAYS),
                        told(more[a, b], POINTS),
                        visible(more[a, b], POINTS),
                    ]
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
    rows = len(next(iter(whole.outcomes.values())))
    return (
        f"SmolLM2-135M adds numbers up to 30. A completion is rewarded with 1 where it is the right sum and ends its "
        f"line, else with nothing; GRPO by TRL, {kept['steps']} steps of {kept['a_step']} completions, rank 16 on all "
        f"linear maps, {_seeds(of['grpo'])} seeds. Beside it the same placements trained on the right answers for as "
        f"many steps, {_seeds(of['sft'])} seeds. Learning rates {rates['grpo']} and {rates['sft']}, by a random half "
        f"on other sums. The expected reward, over {rows} sums that were not trained on, in points; before "
        f"training it is {POINTS.tell(judged[0]['before'])}."
    )


def _seeds(of: Mapping[str, Runs]) -> str:
    few, many = (count(len(runs.scores) for runs in of.values()) for count in (min, max))
    return f"{few}" if few == many else f"{few} or {many}"


def _apart(of: Mapping[str, Runs], pair: tuple[str, str]) -> Runs:
    """One placement minus another, seed by seed and row by row."""
    one, other = (of[name] for name in pair)
    seeds = [seed for seed in one.scores if seed in other.scores]
    return Runs(
        scores={seed: one.scores[seed] - other.scores[seed] for seed in seeds},
        outcomes={seed: one.outcomes[seed] - other.outcomes[seed] for seed in seeds},
        averages=True,
        asked=one.asked,
        limits=(-1.0, 1.0),
    )


def _sentence(
    pairs: Mapping[str, Mapping[tuple[str, str], Interval | None]], more: Mapping[tuple[str, str], Interval | None]
) -> str:
    """Yes where rewards tell two placements further apart than right answers do, by an interval that excludes zero."""
    shown = [pair for pair, apart in more.items() if beats(apart, POINTS) != "inconclusive"]
    sizes = sorted(one.visible for one in more.values() if one is not None and one.visible is not None)
    each = "; ".join(f"{NAMES[one]} and {NAMES[other]} {told(more[one, other], POINTS)}" for one, other in shown)
    begins = f"For {len(shown)} of {len(more)} pairs: {each}" if shown else "Not shown for any pair of placements"
    seen = f"; {POINTS.tell(sizes[0])} to {POINTS.tell(sizes[-1])} points would have been seen"
    said = [
        f"Placements differ {words} in {sum(beats(one, POINTS) != 'inconclusive' for one in pairs[way].values())} of "
        f"{len(more)} pairs"
        for way, words in WAYS.items()
    ]
    return f"{begins}{seen}. {'. '.join(said)}."
