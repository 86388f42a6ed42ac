"""The table and the picture at the end of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layersift.errors import LayersiftError
from layersift.files import write_bytes
from layersift.select.selection import Selection

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})


@dataclass(frozen=True)
class ArmResult:
    """What one choice of layers gave and cost; the costs are None for the untouched model."""

    arm: str
    mask: str
    samples: int
    metrics: dict[str, float | None]
    standard_error: float | None = None  # of the first metric, over the samples, where it is a mean
    trainable_parameters: int | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None  # above the loaded model
    adapter_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def _with_ratio(value: float | None, of_all: float | None, text: str) -> str:
    if value is None:
        return "-"
    return text if not of_all else f"{text} ({value / of_all:.2f})"


def table_rows(results: Sequence[ArmResult]) -> list[list[str]]:
    """Header and one row an arm; behind each figure, in brackets, its ratio to the arm that adapts all layers."""
    names = list(results[0].metrics)
    of_all = next((r for r in results if r.arm == "all"), None)

    def cost(result: ArmResult, name: str, text: str) -> str:
        return _with_ratio(getattr(result, name), getattr(of_all, name, None), text)

    rows = [["layers", *[_heading(n) for n in names], "trained parameters", "seconds", "peak memory", "adapter"]]
    for r in results:
        scores = []
        for name in names:
            value, reference = r.metrics[name], of_all.metrics[name] if of_all else None
            error = f" ± {r.standard_error:.4f}" if name == names[0] and r.standard_error is not None else ""
            scores.append("undefined" if value is None else _with_ratio(value, reference, f"{value:.4f}{error}"))
        costs = [
            cost(r, "trainable_parameters", f"{r.trainable_parameters or 0:,}"),
            cost(r, "train_seconds", f"{r.train_seconds or 0:.1f}"),
            cost(r, "peak_memory_bytes", f"{(r.peak_memory_bytes or 0) / 2**20:,.0f} MiB"),
            cost(r, "adapter_bytes", f"{(r.adapter_bytes or 0) / 2**20:.2f} MiB"),
        ]
        rows.append([f"{r.arm} {r.mask}".strip(), *scores, *costs])
    return rows


def _heading(metric: str) -> str:
    return f"{metric.replace('_', ' ')} {'↓' if metric.split()[0] in LOWER_IS_BETTER else '↑'}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table as Markdown; figures to the right."""
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def caption(results: Sequence[ArmResult]) -> str:
    """What a reader has to know to read the table."""
    notes = [
        f"{results[0].samples} test samples, one seed; ± is the standard error over them.",
        "In brackets the ratio to all layers.",
    ]
    notes.append("Peak memory is what training needs above the loaded model.")
    if any(r.arm == "untouched" and "accuracy" in r.metrics for r in results):
        notes.append("The untouched model's classification head is random.")
    return " ".join(notes)


def require_picture(path: Path) -> None:
    """Refuse kinds of pictures that cannot be written, before the work is done.

    Raises:
        LayersiftError: another ending than .png, .svg or .pdf.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise LayersiftError(f"{path}: unknown kind of picture {path.suffix!r}; known: .png, .svg, .pdf")


def draw_importance(selection: Selection, path: Path) -> None:
    """Write a picture of the importance of each layer, the selected ones coloured, the undefined ones marked."""
    from matplotlib.figure import Figure

    layers = range(selection.num_layers)
    heights = [value if value is not None else 0.0 for value in selection.importance]
    colours = ["#1f77b4" if i in selection.selected_layers else "#c7c7c7" for i in layers]
    figure = Figure(figsize=(max(5.5, 0.28 * selection.num_layers + 1.5), 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(layers, heights, color=colours)
    if selection.interval is not None:
        known = [(i, selection.importance[i], edges) for i, edges in enumerate(selection.interval) if edges]
        below = [max(0.0, (value or 0.0) - low) for _, value, (low, _) in known]
        above = [max(0.0, high - (value or 0.0)) for _, value, (_, high) in known]
        at = [i for i, _, _ in known]
        axes.errorbar(at, [heights[i] for i in at], yerr=[below, above], fmt="none", ecolor="#444444", capsize=2, lw=1)
        axes.plot([], [], color="#444444", lw=1, label=f"{selection.confidence:.0%} interval")
    for i in selection.undefined:
        axes.text(i, 0, "undefined", rotation=90, ha="center", va="bottom", fontsize=8, color="#d62728")
    axes.bar([0], [0], color="#1f77b4", label=f"selected ({len(selection.selected_layers)})")
    axes.bar([0], [0], color="#c7c7c7", label="frozen")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.0))
    top = max([*heights, *(edges[1] for edges in selection.interval or () if edges)]) or 1.0
    axes.set_ylim(min(0.0, *heights), top * 1.25)
    axes.set_xticks(list(layers))
    axes.tick_params(axis="x", labelsize=9 if selection.num_layers <= 16 else 7)
    axes.set_xlabel("layer (from 0, as PEFT counts)")
    axes.set_ylabel(f"importance, {selection.metric}")
    axes.set_title(
        f"{_short(selection.model)} on {_short(str(selection.data.get('source', 'data')))}\n"
        f"{selection.num_samples} samples, position {selection.position}",
        fontsize=9,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix.removeprefix("."))
    write_bytes(path, picture.getvalue())


def _short(name: str) -> str:
    parts = Path(name).parts
    return "/".join(parts[-2:])
