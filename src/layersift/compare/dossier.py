"""What a comparison leaves on disk: results as JSON, tables as Markdown."""

from __future__ import annotations

from pathlib import Path

from layersift.compare.contest import Contest
from layersift.compare.oracle import Oracle
from layersift.compare.report import markdown
from layersift.compare.tables import caption, headings, oracle_caption, oracle_rows, verdicts
from layersift.files import write_json, write_text


def write_contest(contest: Contest, output: Path) -> Path:
    """compare.json and compare.md."""
    write_json(output / "compare.json", contest.to_json())
    parts = []
    for title, rows in headings(contest):
        parts.append(f"## {title}\n\n{markdown(rows)}")
    for method, size in dict.fromkeys((s.entry.method, s.entry.size) for s in contest.standings):
        lines = [f"- {name}: {said}" for name, said in verdicts(contest, method, size)]
        parts.append(f"### What may be said, {size} layers, {method}\n\n" + "\n".join(lines) + "\n")
    write_text(output / "compare.md", "\n".join([*parts, caption(contest)]) + "\n")
    return output / "compare.md"


def write_oracle(oracle: Oracle, output: Path) -> Path:
    """oracle.json and oracle.md."""
    write_json(output / "oracle.json", oracle.to_json())
    write_text(output / "oracle.md", f"{markdown(oracle_rows(oracle))}\n{oracle_caption(oracle)}\n")
    return output / "oracle.md"
