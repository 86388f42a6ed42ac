"""What a grid's cells depend on stands in grid.json by content: an edited file under the same path is another grid."""

import json
import shutil

import pytest

from layersift.config.recipe import recipe_of
from layersift.errors import LayersiftError
from layersift.experiment.grid import GRID_FILE, open_grid

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} w9 {% endfor %}"


@pytest.fixture
def place(llama_directory, tmp_path):
    shutil.copytree(llama_directory, tmp_path / "model")
    rows = [{"prompt": f"w{i} w{(i * 7) % 40}", "response": f"w{i % 5}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    (tmp_path / "rules.py").write_text("def mine(context):\n    return [1, 2, 3, 4]\n")
    return tmp_path


def recipe(place):
    values = {
        "model": str(place / "model"),
        "data": {"data": str(place / "rows.jsonl"), "chat_template": str(place / "t.jinja")},
        "select": {"criterion": f"{place / 'rules.py'}:mine"},
        "output": str(place / "grid"),
    }
    return recipe_of(values, "a recipe")


@pytest.mark.parametrize(
    ("file", "before", "after", "kind", "named"),
    [
        ("t.jinja", "w9", "w8", "run", "contents.examples"),
        ("t.jinja", "w9", "w8", "comparison", "contents.examples"),
        ("model/tokenizer.json", '"w1": ', '"w1000": ', "run", "contents.examples"),
        ("rules.py", "[1, 2, 3, 4]", "[4, 3, 2, 1]", "run", "contents.rule"),
    ],
)
def test_an_edited_file_is_another_grid(place, file, before, after, kind, named):
    with open_grid(recipe(place), kind) as output:
        begun = (output / GRID_FILE).read_text()
    path = place / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(LayersiftError, match=named), open_grid(recipe(place), kind):
        pass
    older = json.loads(begun)
    del older["contents"]["examples"], older["contents"]["rule"]
    (place / "grid" / GRID_FILE).write_text(json.dumps(older))
    with open_grid(recipe(place), kind):  # what versions up to 0.1 did not write is not held against them
        pass
