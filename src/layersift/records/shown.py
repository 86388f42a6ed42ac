"""A selection for people: a row a layer, as text and as a page's table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Protocol

from layersift.records.data import DataRecord


class Shown(Protocol):
    """What is told of a :class:`layersift.records.selection.Selection`, where its fields are described."""

    @property
    def model(self) -> str: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def selected_layers(self) -> Sequence[int]: ...
    @property
    def mask(self) -> str: ...
    @property
    def importance(self) -> Sequence[float | None]: ...
    @property
    def interval(self) -> Sequence[tuple[float, float] | None] | None: ...
    @property
    def membership(self) -> Sequence[float] | None: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def top_dimension_share(self) -> Sequence[float | None]: ...
    @property
    def undefined(self) -> Mapping[int, str]: ...
    @property
    def modules(self) -> Mapping[int, Mapping[str, int]] | None: ...
    @property
    def rule(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def position(self) -> str: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def data(self) -> DataRecord: ...
    @property
    def versions(self) -> Mapping[str, str]: ...
    @property
    def command(self) -> str: ...


def rows_of(selection: Shown) -> list[list[str]]:
    """A header, and a row a layer: its importance, how sure it is, the largest dimension's share, what is selected."""
    read = any(share is not None for share in selection.top_dimension_share)
    header = ["layer", "importance"]
    if selection.confidence is not None:
        header += [f"{selection.confidence:.0%} interval", "in the top"]
    if read:
        header.append("largest dimension")
    rows = [[*header, "", ""]]
    largest = max((abs(v) for v in selection.importance if v is not None), default=1.0)
    for layer, value in enumerate(selection.importance):
        row = [str(layer), "undefined" if value is None else _figure(value, largest)]
        if selection.confidence is not None:
            between = selection.interval[layer] if selection.interval is not None else None
            row.append("-" if between is None else " to ".join(_figure(edge, largest) for edge in between))
            row.append("-" if selection.membership is None else f"{selection.membership[layer]:.0%}")
        if read:
            share = selection.top_dimension_share[layer]
            row.append("-" if share is None else f"{share:.0%}")
        chosen = "selected" if layer in selection.selected_layers else ""
        if selection.modules is not None and layer in selection.modules:
            chosen = ", ".join(f"{name} {rank}" for name, rank in selection.modules[layer].items())
        rows.append([*row, chosen, selection.undefined.get(layer, "")])
    return rows


def html_of(selection: Shown) -> str:
    """What the selection says of itself, and a table of its rows."""
    header, *body = [[html.escape(cell) for cell in row] for row in rows_of(selection)]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f"<p>{html.escape(str(selection))}</p><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _figure(value: float, largest: float) -> str:
    """Four decimals, or four digits where all values are small."""
    return f"{value:.4f}" if largest >= 0.01 else f"{value:.3e}"
