"""Question 9: when is the advice wrong?"""

from __future__ import annotations

from layersift.files import read_json
from layersift.statistics.intervals import LOSS, POINTS
from pages.measured import RESULTS
from pages.page import Page, table

FIT = 1 / 12  # of the recommendations, how many may be seen to be beaten
WORDS = """\
`layersift advise` without a trial, within a time, a number of parameters and a memory, on every task that had been
trained. **The order of advice was made from these tasks**, so they cannot confirm it. Its recommendation is looked up
among the trainings measured there. *On the front*: nothing measured that fits takes less and scores more, by the
figures alone. *Significantly worse*: something that fits scores more by an interval that excludes zero."""
CHANGES = """\
Tasks that have not been trained; intervals narrow enough to see that something else is better; candidates that it
advised against and that were never trained. On GSM8K the measurements are those of the short training, with one
seed."""
HEADER = ["task", "limit", "advised", "score", "on the front", "significantly worse", "best that was measured and fits"]


def page() -> Page:
    """Every recommendation, and what beats it."""
    found = read_json(RESULTS / "advice.json", "advice")["found"]
    rows = []
    for name, one in found.items():
        task, what = name.rsplit(", ", 1)
        unit, score = LOSS if "gsm8k" in task else POINTS, one["score"]
        rows.append(
            [
                task,
                f"{what}: {one['limit']}",
                one["advised"],
                "-" if score is None else f"{unit.tell(score['value'])} {unit.name}",
                "yes" if one["on_front"] else "no",
                "yes" if one.get("seen_to_be_beaten") else "no",
                "-" if score is None else one["best_that_fits"]["name"],
            ]
        )
    front = sum(bool(one["on_front"]) for one in found.values())
    beaten = sum(bool(one.get("seen_to_be_beaten")) for one in found.values())
    begins = "Hardly ever" if beaten <= FIT * len(found) else "Too often"
    return Page(
        name="advice",
        question="When is the advice wrong?",
        answer=f"{begins} on the tasks that it was made from: of {len(found)} recommendations {beaten or 'none'} "
        f"{'is' if beaten < 2 else 'are'} significantly worse than another within the limit, and {front} lie on the "
        "measured front. On other tasks it has not been judged.",
        sections=[WORDS, table(HEADER, rows)],
        commands=["python benchmarks/advice.py DATA"],
        changes=CHANGES,
    )
