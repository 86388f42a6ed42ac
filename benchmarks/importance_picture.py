"""Draw the picture of importances in docs/criteria/cka.md again, as `select --picture` draws them today.

python benchmarks/importance_picture.py
"""

from __future__ import annotations

from pathlib import Path

from layersift.records.selection import Selection
from layersift.report.comparison import write_importance

NAME = Path(__file__).resolve().parent / "results" / "smollm2-gsm8k"


def main() -> None:
    """The picture beside the selection that held_or_not.py keeps."""
    write_importance(Selection.load(f"{NAME}.selection.json"), Path(f"{NAME}.importance.png"))


if __name__ == "__main__":
    main()
