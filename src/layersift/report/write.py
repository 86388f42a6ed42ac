"""What experiments leave on disk: pages, pictures, Markdown tables, JSON; also in PEFT's `method_comparison` layout."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from layersift.adapt.methods import find_method
from layersift.config.train import FULL
from layersift.draw import picture
from layersift.errors import LayersiftError
from layersift.experiment.choices import BASE
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Judgement
from layersift.experiment.oracle import Oracle
from layersift.experiment.prepare import between_criteria, between_positions
from layersift.experiment.run import Outcome
from layersift.files import read_json, write_bytes, write_json, write_text
from layersift.provenance import command, machine, versions
from layersift.report import charts
from layersift.report.comparison import (
    Chart,
    Section,
    page,
    pictures,
    reproduce,
    sections_of,
    sizes_of,
    write_importance,
)
from layersift.report.figures import draw
from layersift.report.tables import (
    caption,
    groups_of,
    headings,
    markdown,
    oracle_caption,
    oracle_rows,
    run_caption,
    run_rows,
    verdict_first,
    verdict_rows,
)

NOT_MEASURED = -1


def method_comparison(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """By experiment name. Figures are means over the seeds, memory is the peak above the loaded model.

    What the suite measures and a comparison does not is null, or -1 where the suite reads whole numbers only.
    """
    results = {}
    for row in comparison.rows:
        if row.choice.name == BASE:
            continue
        choice = row.choice
        words = f"{choice.train.method}-{choice.size}-{choice.name}"
        if choice.budget is not None:
            words += f"-for-{choice.budget:.2f}"
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        results[name] = _result(comparison, row, name)
    return results


def is_export(file: Path) -> bool:
    """Whether a file is one that :func:`method_comparison` gave, and nobody else's."""
    try:
        return bool(read_json(file, "an exported row")["run_info"]["experiment_name"] == file.stem)
    except (LayersiftError, KeyError, TypeError):
        return False


def _result(comparison: Comparison, row: Judgement, name: str) -> dict[str, Any]:
    recipe, data, choice, packages = comparison.recipe, comparison.scoring.data, row.choice, versions()
    train = choice.train
    config = (
        None
        if train.method == FULL
        else {
            "peft_type": find_method(train.method).peft_type,
            "r": train.rank,
            "lora_alpha": train.alpha,
            "target_modules": train.target_modules,
            "layers": [[i for i, digit in enumerate(mask) if digit == "1"] for mask in choice.masks],
        }
    )
    tested = {f"test {metric}": value for metric, value in row.metrics.items()}
    trained = {
        "train loss": row.train_loss,
        "train samples": recipe.train.max_samples or comparison.scoring.data.rows,
        "train total tokens": NOT_MEASURED,
    }
    return {
        "run_info": {
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "total_time": row.seconds,
            "experiment_name": name,
            "peft_branch": None,
            "train_config": {"model_id": recipe.model.name, "seed": list(comparison.seeds), **asdict(choice.train)},
            "peft_config": config,
            "error_msg": "; ".join(row.failures),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": NOT_MEASURED,
            "accelerator_memory_max": _whole(row.memory),
            "accelerator_memory_reserved_99th": NOT_MEASURED,
            "train_time": row.seconds,
            "file_size": _whole(row.adapter),
            "num_trainable_params": _whole(row.parameters),
            "num_total_params": None,
            "status": "success" if row.score is not None else "failed",
            "metrics": [{"test accuracy": None} | tested | trained],
        },
        "meta_info": {
            "model_info": {"sha": comparison.contents["model"], "created_at": None},
            "dataset_info": {data.source: {"sha": data.fingerprint, "created_at": None}},
            "package_info": {f"{package}-version": packages.get(package) for package in (*packages, "bitsandbytes")},
            "system_info": {
                "system": platform.system(),
                "release": platform.release(),
                "machine": platform.machine(),
                "processor": str(machine()["cpu"]),
                "accelerator": str(machine()["gpu"]),
            },
            "pytorch_info": packages["torch"],
        },
    }


def _whole(value: float | None) -> int:
    return NOT_MEASURED if value is None else round(value)


def write_run(outcome: Outcome, output: Path) -> None:
    """table.md, results.json and, where layers were chosen by scores, importance.png, under ``output``."""
    if outcome.selection is not None:
        write_importance(outcome.selection, output / "importance.png")
    if outcome.rows:
        first = "" if outcome.nothing_learned is None else f"{outcome.nothing_learned}\n\n"
        write_text(output / "table.md", f"{first}{markdown(run_rows(outcome))}\n{run_caption(outcome)}\n")
    write_json(output / "results.json", outcome.to_json())


def write_figure(kind: str, outcomes: Mapping[str, Outcome], output: Path) -> None:
    """figure.png, figure.svg and figure.json, under ``output``; and what each run leaves, under its own."""
    chart = draw(kind, outcomes)
    for suffix in (".png", ".svg"):
        write_bytes(output / f"figure{suffix}", picture(chart, suffix))
    values = {
        name: {"selection": o.selection and o.selection.to_json(), "results": o.results()}
        for name, o in outcomes.items()
    }
    made = {"figure": kind, "command": command(), "versions": versions()}
    write_json(output / "figure.json", {"schema_version": 2, **made, "recipes": values})


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """report.html, charts/, tables.md, compare.json and peft-method-comparison/, under ``output``."""
    sections = sections_of(comparison)
    rows, tables = len(comparison.rows), len(groups_of(comparison))
    lead = (
        f"{comparison.recipe.model.name} on {comparison.scoring.data.source}: {rows} rows in "
        f"{'one table' if tables == 1 else f'{tables} tables'}."
    )
    write_text(
        output / "report.html",
        page("Which layers should carry the adapters?", lead, sections, verdict_first(comparison)),
    )
    _write_charts(sections, output / "charts")
    write_text(output / "tables.md", _tables(comparison))
    agreement = {str(size): between_criteria(comparison.scoring, size) for size in sizes_of(comparison)}
    write_json(output / "compare.json", comparison.to_json() | {"agreement": agreement})
    exported = {f"{name}.json": values for name, values in method_comparison(comparison).items()}
    for name, values in exported.items():
        write_json(output / "peft-method-comparison" / name, values)
    for file in (output / "peft-method-comparison").glob("*.json"):  # rows of criteria that are not asked for any more
        if file.name not in exported and is_export(file):
            file.unlink()
    return output / "report.html"


def write_oracle(oracle: Oracle, output: Path) -> Path:
    """oracle.html, charts/subsets, oracle.md and oracle.json, under ``output``."""
    said = oracle_caption(oracle)
    chart = Chart("subsets", charts.subsets(oracle), "Bars from the lowest to the highest seed; dashed: all layers.")
    nothing = oracle.nothing_learned
    sections = [Section("Every subset" if nothing else "Every subset, the best first", charts=[chart])]
    if oracle.placed:
        sections.append(Section("Where the criteria's choices stand", tables=[("", oracle_rows(oracle))]))
    if oracle.left_out:
        sections.append(Section("What was left out", [f"{name}: {why}." for name, why in oracle.left_out.items()]))
    sections.append(reproduce(oracle.recipe, oracle.contents))
    write_text(output / "oracle.html", page("Every subset of layers, trained", said, sections))
    _write_charts(sections, output / "charts")
    table = f"{markdown(oracle_rows(oracle))}\n" if oracle.placed else ""
    write_text(output / "oracle.md", f"{table}{said}\n")
    write_json(output / "oracle.json", oracle.to_json())
    return output / "oracle.html"


def _write_charts(sections: Sequence[Section], directory: Path) -> None:
    for section in sections:
        for chart in section.charts:
            for suffix, content in pictures(chart).items():
                write_bytes(directory / f"{chart.name}{suffix}", content)


def _tables(comparison: Comparison) -> str:
    parts = [f"{said}\n" for said in verdict_first(comparison)]
    parts += [f"## {title}\n\n{markdown(rows)}" for title, rows in headings(comparison)]
    parts.append(f"{caption(comparison)}\n")
    for group in groups_of(comparison):
        if rows := verdict_rows(comparison, group):
            parts.append(f"## What may be said: {group.title(comparison.num_layers)}\n\n{markdown(rows)}")
    parts.append(f"## Selections by token position\n\n{markdown(between_positions(comparison.scoring.positions))}")
    return "\n".join(parts)
