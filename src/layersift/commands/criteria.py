"""`layersift criteria`: the rules that rank layers, what each needs, and where it comes from."""

from __future__ import annotations

from . import options as o


def criteria(quiet: o.Quiet = False, json: o.Json = False) -> None:
    """List the criteria that layers can be ranked by."""
    from layersift.score.registry import CRITERIA

    from .console import Console

    console = Console(quiet, json)
    rows = [["criterion", "adapts where", "cost", "what it is"]]
    rows += [[c.name, f"it is {c.direction}", c.cost, c.summary] for c in CRITERIA.values()]
    console.table(rows)
    console.say("Behind those that read tokens may stand a position, cka@last; bottom:cka turns one round;")
    console.say("rules.py:mine is a function of your own. docs/criteria/ has a page for each.")
    console.result(
        [
            {
                "name": c.name,
                "summary": c.summary,
                "needs": c.needs,
                "direction": c.direction,
                "cost": c.cost,
                "source": c.source,
                "reads_position": c.reads_states,
            }
            for c in CRITERIA.values()
        ]
    )
