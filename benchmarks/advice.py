"""Does `layersift advise` recommend what turns out to lie on the measured front?

    python benchmarks/advice.py DATA [--only minilm-trec]

Asks for advice, without a trial, within a time, a number of parameters and a memory, for every task that
benchmarks/strategies.py has finished, and looks the recommendation up among the trainings measured there. It is on the
front where no measured way that fits the limit takes less of what is limited and scores more; it is seen to be beaten
where one of those scores more by a paired difference that excludes zero. DATA as there. Results:
benchmarks/results/advice.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from digits import make_digits
from layersift.advise.adviser import Advice, advise
from layersift.advise.candidates import Priced
from layersift.commands.console import Console
from layersift.config.fields import json_values
from layersift.config.limits import Limits
from layersift.config.recipe import read_recipe
from layersift.experiment.judge import runs_of
from layersift.experiment.prepare import checked
from layersift.files import read_json, write_json
from layersift.plan.memory import MARGIN
from layersift.progress import Reporter
from layersift.provenance import made_by
from layersift.statistics.intervals import Runs, difference, unit_of
from places import enter_workplace
from trained import compared, read_choice

HERE = Path(__file__).resolve().parent
SHARE = 0.65  # of all layers' parameters
# What people limit: how the limit is read off all layers' figures, and what a way takes of it.
LIMITED: dict[str, Callable[[Priced], float]] = {
    "time": lambda one: one.flops,
    "params": lambda one: one.parameters,
    "memory": lambda one: one.memory_bytes,
}


def constraints(whole: Priced, least: Priced, share: float) -> dict[str, Limits]:
    """Three constraints, each of one kind: the memory halfway between all layers' and the least that any way takes.

    Args:
        share: of all layers' FLOPs, what the comparison has rows of.
    """
    middle = (whole.memory_bytes + least.memory_bytes) / 2 * MARGIN
    return {
        "time": Limits(time=str(share)),
        "params": Limits(params=str(round(SHARE * whole.parameters))),
        "memory": Limits(memory=f"{middle / 1000:.3f}kB"),
    }


def measured(rows: list[dict[str, Any]], one: Priced, advice: Advice) -> dict[str, Any] | None:
    """The row of a comparison in which a way of training was trained, whatever its batches were cut into."""
    settings, base = one.variant.train, advice.recipe.train
    for row in rows:
        choice = read_choice(row["choice"])
        same = (
            choice.masks == (one.variant.mask,)
            and choice.train.rank == settings.rank
            and choice.train.strategy == settings.strategy
            and (choice.train.target_modules or base.target_modules) == settings.target_modules
            and abs((choice.train.epochs or base.num_epochs) / settings.num_epochs - 1) < 0.02
        )
        if same and row["score"] is not None:
            return row
    return None


def judged(advice: Advice, rows: list[dict[str, Any]], metric: str, what: str, place: Path) -> dict[str, Any]:
    """Where the recommendation lies among the measured ways that fit."""
    sign, read = unit_of(metric).sign, LIMITED[what]
    known = {one.variant.name: row for one in advice.priced if one.fits and (row := measured(rows, one, advice))}
    chosen = advice.recommended
    assert chosen is not None
    found = {"advised": chosen.variant.name, "takes": read(chosen), "ways_measured": sorted(known)}
    row = known.get(chosen.variant.name)
    if row is None:
        return found | {"score": None, "on_front": None}
    costs = {one.variant.name: read(one) for one in advice.priced}
    better = [
        name
        for name, other in known.items()
        if costs[name] <= read(chosen) and sign * other["score"]["value"] > sign * row["score"]["value"]
    ]
    _, trained = compared(place)

    def runs(of: dict[str, Any]) -> Runs:
        return runs_of(read_choice(of["choice"]), trained)

    apart = {name: difference(runs(known[name]), runs(row)) for name in better}
    best = max(known, key=lambda name: sign * known[name]["score"]["value"])
    return found | {
        "score": row["score"],
        "from_all": row["from_all"],
        "on_front": not better,
        "beaten_by": {name: json_values(interval) for name, interval in apart.items()},
        "seen_to_be_beaten": any(interval is not None and not interval.holds_zero for interval in apart.values()),
        "best_that_fits": {"name": best, "score": known[best]["score"]},
    }


def main() -> None:
    """Every task that has been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", default=None)
    arguments = parser.parse_args()
    results = HERE / "results" / "strategies"
    done = sorted(path.parent.name for path in results.glob("*/compare.json"))
    enter_workplace(arguments.data, results)
    if "vit-digits" in (arguments.only or done):
        make_digits(Path("digits"))
    written = results.parent / "advice.json"
    console, found = Console(), read_json(written, "advice")["found"] if written.exists() else {}
    for name in arguments.only or done:
        recipe = read_recipe(HERE / "strategies" / f"{name}.yaml", [], f"results/{name}")
        comparison = read_json(results / name / "compare.json", "a finished comparison")
        _, _, prepared = checked(recipe, console)
        free = advise(recipe, prepared, Limits(), Reporter())
        whole, least = free.priced[0], min(free.priced, key=lambda one: one.memory_bytes)
        for what, limits in constraints(whole, least, recipe.compare.budgets[0]).items():
            advice = advise(recipe, prepared, limits, Reporter())
            found[f"{name}, {what}"] = {"limit": getattr(limits, what)} | judged(
                advice, comparison["rows"], comparison["metric"], what, results / name
            )
            console.say(json.dumps(found[f"{name}, {what}"], indent=2))
    write_json(written, {**made_by(), "found": found})


if __name__ == "__main__":
    main()
