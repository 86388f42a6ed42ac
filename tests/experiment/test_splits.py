"""A grid whose rates are chosen on rows held back is not gone on with where an earlier version held back others."""

import json

import pytest

from layersift.config.recipe import recipe_of
from layersift.errors import LayersiftError
from layersift.experiment.grid import GRID_FILE, open_grid


@pytest.mark.parametrize("alike", [False, True])
def test_other_rows_held_back_are_another_grid(alike, bert_directory, tmp_path):
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": i % 2} for i in range(40)]
    rows += [{**row, "text": row["text"].upper()} for row in rows[: 4 * alike]]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": bert_directory,
        "data": str(tmp_path / "train.jsonl"),
        "evaluate": str(tmp_path / "test.jsonl"),
        "compare": {"learning_rates": [1e-3, 1e-2]},
        "output": str(tmp_path / "grid"),
    }
    recipe = recipe_of(values, "a recipe")
    with open_grid(recipe) as output:
        begun = json.loads((output / GRID_FILE).read_text())
    del begun["rows held back"]  # which an earlier version did not write
    (output / GRID_FILE).write_text(json.dumps(begun))
    if not alike:
        with open_grid(recipe):
            return
    with pytest.raises(LayersiftError, match="other rows held back"), open_grid(recipe):
        pass
