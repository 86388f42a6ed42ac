"""Draw the importances of every committed selection again, as `select --picture` draws them today.

python benchmarks/importance_pictures.py
"""

from __future__ import annotations

from pathlib import Path

from layersift.records.selection import Selection
from layersift.report.importance import write_importance

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """One picture beside each selection file."""
    for file in sorted(RESULTS.glob("*.selection.json")):
        write_importance(Selection.load(file), file.with_name(file.name.replace(".selection.json", ".importance.png")))
        print(file.name)


if __name__ == "__main__":
    main()
