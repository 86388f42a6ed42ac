"""The table of an oracle: where each criterion's choice stands among all subsets."""

from __future__ import annotations

from layersift.experiment.oracle import Oracle
from layersift.experiment.smoke import smoke_notice
from layersift.report.tables import majority_told, no_better
from layersift.statistics.verdicts import unit_of


def oracle_rows(oracle: Oracle) -> list[list[str]]:
    """Header and one row a criterion that has a place."""
    unit = unit_of(oracle.metric)
    rows = [["criterion", "mask", oracle.metric, "place", "percentile", f"lost to the best, {unit.name}"]]
    for p in oracle.placed:
        place = f"{p.place} of {p.among}"
        rows.append([p.criterion, p.mask, unit.tell(p.score), place, f"{p.percentile:.0f}", unit.tell(p.lost)])
    return rows


def oracle_caption(oracle: Oracle) -> str:
    """What a reader has to know to read the table."""
    unit = unit_of(oracle.metric)
    scores = [s.mean for s in oracle.subsets if s.drawn]
    mean, worst = unit.tell(sum(scores) / len(scores)), unit.tell(scores[-1])
    best = oracle.subsets[0]
    scored = f"Best {best.mask}: {unit.tell(best.mean)}, mean {mean}, worst {worst} {unit.name}."
    few = ""
    if oracle.nothing_learned is not None:
        scored = f"Scores from {unit.tell(min(scores))} to {unit.tell(max(scores))} {unit.name}, mean {mean}."
    elif len(scores) < oracle.total:
        few = " What lies beyond those trained is not known, so 'lost' is the least that was."
    noise = (
        ""
        if oracle.noise is None
        else f" One subset's {oracle.metric} varies by {unit.tell(oracle.noise)} over seeds (sd)."
    )
    every = [score for subset in oracle.subsets for score in subset.scores]
    low = no_better(every, oracle.metric, oracle.majority)
    collapsed = f" {low} of {len(every)} trainings are no better than that." if low else ""
    of_all = "" if oracle.all_layers is None else f" All layers: {unit.tell(oracle.all_layers)}."
    same = oracle.all_layers_learning_rate == oracle.learning_rate
    all_rate = "" if same else f", of all layers {oracle.all_layers_learning_rate:g}"
    nothing = "" if oracle.nothing_learned is None else f"{oracle.nothing_learned} "
    return (
        f"{smoke_notice(oracle.recipe)}{nothing}"
        f"{len(scores)} of {oracle.total} subsets of {oracle.size} of {oracle.num_layers} layers, "
        f"{len(oracle.seeds)} {'seed' if len(oracle.seeds) == 1 else 'seeds'}. {scored}"
        f"{of_all}{noise}{few} Learning rate {oracle.learning_rate:g}{all_rate}."
        f"{majority_told(oracle.majority)}{collapsed}"
    )
