"""A sweep over ranks as a table, in words, as a picture and as JSON."""

from __future__ import annotations

from pathlib import Path

from layersift.experiment.run import MARGIN, RankSweep
from layersift.experiment.smoke import smoke_notice
from layersift.files import write_json, write_text
from layersift.report.tables import COSTS, difference_text, heading, markdown, rate_text, score_text
from layersift.report.write import write_figure
from layersift.statistics.intervals import unit_of


def rank_rows(sweep: RankSweep) -> list[list[str]]:
    """Header and a row a rank, the base model last."""
    metric = sweep.outcome.metric
    unit = unit_of(metric)
    rows = [["rank", f"{heading(metric)} ({unit.name})", "from the best", "rate", *(name for name, _, _ in COSTS)]]
    for row in sweep.outcome.rows:
        name = str(row.choice.train.rank) if row.choice.trained else row.choice.name
        apart = "best" if row.choice.name == sweep.best else difference_text(sweep.from_best.get(row.choice.name), unit)
        costs = ["-" if (value := read(row)) is None else tell(value) for _, read, tell in COSTS]
        rows.append([name, score_text(row.score, unit), apart, rate_text(row.choice), *costs])
    return rows


def rank_words(sweep: RankSweep) -> list[str]:
    """Which rank to take, and on what the figures rest."""
    outcome, first = sweep.outcome, next(iter(sweep.outcome.variants.values()))[0]
    said = [] if outcome.nothing_learned is None else [outcome.nothing_learned]
    if sweep.best is not None and sweep.enough is not None:
        best = next(row.choice.train.rank for row in outcome.rows if row.choice.name == sweep.best)
        unit, better = unit_of(outcome.metric), f"Take rank {sweep.enough}"
        margin = f"{unit.tell(MARGIN)} {unit.name}"
        said.append(
            f"{better}, which scores best."
            if best == sweep.enough
            else f"{better}: the lowest that loses at most {margin} to rank {best}, the best, by its whole interval."
        )
        if sweep.open_:
            lower = ", ".join(map(str, sweep.open_))
            said.append(f"Inconclusive of rank {lower}: more --seeds or test rows would tell.")
    seeds = f"{len(sweep.seeds)} seeds" if len(sweep.seeds) > 1 else "one seed"
    over = "seeds and samples" if len(sweep.seeds) > 1 else "samples"
    said.append(f"{first.samples} test samples, {seeds}; ± and brackets are 95% intervals over {over}.")
    if outcome.majority is not None:
        said.append(f"For comparison: {outcome.majority}.")
    said += [f"Note: {notice}." for notice in outcome.notices]
    said += [f"{row.choice.name}: {notice}." for row in outcome.rows for notice in row.notices]
    said += [f"{name} failed: {why}" for name, why in outcome.failures.items()]
    return [smoke_notice(outcome.recipe) + said[0], *said[1:]]


def write_rank_sweep(sweep: RankSweep, output: Path) -> None:
    """table.md, results.json and figure.png, .svg and .json, under ``output``."""
    write_text(output / "table.md", "\n\n".join([markdown(rank_rows(sweep)).rstrip(), *rank_words(sweep)]) + "\n")
    write_json(output / "results.json", sweep.to_json())
    write_figure("ranks", {output.name: sweep.outcome}, output)
