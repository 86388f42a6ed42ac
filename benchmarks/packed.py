"""The trainings of a comparison in one compact file, cells.json, in the place of a file each in cells/.

Outcomes that are right or wrong are kept as bits; what is read back is what was written, to the last digit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layersift.files import read_json, write_text

PACKED, CELLS, TABLE = "cells.json", "cells", "compare.json"


def pack(place: Path) -> None:
    """Write all cells of a directory, and of those below it, into its compact file; one line a training.

    A comparison's own file loses its blanks, which are most of it.
    """
    surroundings: list[Any] = []
    weights: list[Any] = []  # of the samples, which most trainings have in common
    lines = []
    for path in sorted(place.rglob(f"{CELLS}/*.json")):
        values = json.loads(path.read_text())
        made = values.pop("made", None)
        if made not in surroundings:
            surroundings.append(made)
        values["made"] = surroundings.index(made)
        for one in (values, *values.get("looks", ())):
            one["outcomes"] = _bits(one["outcomes"])
            if one.get("weights"):
                if one["weights"] not in weights:
                    weights.append(one["weights"])
                one["weights"] = weights.index(one["weights"])
        lines.append(json.dumps({"file": str(path.relative_to(place)), **values}, separators=(",", ":")))
    head = f'"made": {json.dumps(surroundings)},\n"weights": {json.dumps(weights, separators=(",", ":"))}'
    write_text(place / PACKED, f'{{{head},\n"cells": [\n' + ",\n".join(lines) + "\n]}\n")
    if (table := place / TABLE).exists():
        write_text(table, json.dumps(read_json(table, "a comparison"), separators=(",", ":")) + "\n")


def unpack(place: Path) -> None:
    """Make the files that are not there from the compact one, where there is one."""
    if (place / PACKED).exists():
        for file, values in packed_cells(place).items():
            if not (place / file).exists():
                write_text(place / file, json.dumps(values) + "\n")


def packed_cells(place: Path) -> dict[str, dict[str, Any]]:
    """What each file held that went into the compact one."""
    held, found = read_json(place / PACKED, "packed trainings"), {}
    for values in held["cells"]:
        file = values.pop("file")
        for one in (values, *values.get("looks", ())):
            one["outcomes"] = _outcomes(one["outcomes"])
            if isinstance(one.get("weights"), int):
                one["weights"] = held["weights"][one["weights"]]
        made = held["made"][values.pop("made")]
        found[file] = values if made is None else values | {"made": made}
    return found


def _bits(outcomes: list[float]) -> list[float] | str:
    """Zeros and ones as their number and hexadecimal digits; anything else as it is."""
    if not outcomes or set(outcomes) - {0.0, 1.0}:
        return outcomes
    return f"{len(outcomes)}:{int(''.join(str(int(o)) for o in outcomes), 2):x}"


def _outcomes(kept: list[float] | str) -> list[float]:
    if not isinstance(kept, str):
        return kept
    count, digits = kept.split(":")
    return [float(bit) for bit in f"{int(digits, 16):0{count}b}"]
