"""The notebooks run from their first cell to their last, with a tiny model and rows in the place of those they name."""

import json
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

BOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
pytestmark = pytest.mark.slow


def said(book):
    """All that its cells printed."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs if output.output_type == "stream")


@pytest.mark.parametrize("name", ["choose", "train"])
def test_a_notebook_runs(name, bert_directory, tmp_path):
    book = nbformat.read(BOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells)  # figures of one machine are no part of it
    given = next(cell for cell in book.cells if cell.cell_type == "code")
    assert given.source.startswith("MODEL = ")
    given.source += f"\nMODEL = {bert_directory!r}"
    for file in ("train", "test"):
        rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": ("billing", "delivery")[i % 2]} for i in range(48)]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if name == "choose":
        assert "layer 3: importance" in said(book)
        assert "last     0011" in said(book)
        assert json.loads((tmp_path / "selection.json").read_text())["selected_layers"]
        shown = [
            output.get("data", {}).get("text/html", "") for cell in book.cells for output in cell.get("outputs", [])
        ]
        assert any("vega" in page.lower() for page in shown)
    else:
        lines = [line for line in said(book).splitlines() if "accuracy" in line]
        assert [line.split()[0] for line in lines] == ["selected", "all"]
        parameters = [int(line.split(", ")[1].split()[0].replace(",", "")) for line in lines]
        assert parameters[0] < parameters[1]
