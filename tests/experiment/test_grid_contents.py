"""What a grid's cells depend on stands in grid.json by content: an edited file under the same path is another grid."""

import json
import shutil
from dataclasses import fields, replace

import pytest

from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource, Recipe, recipe_of
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.config.variants import CompareSettings
from layersift.errors import LayersiftError
from layersift.experiment import prepare as module
from layersift.experiment.grid import GRID_FILE, open_grid
from layersift.experiment.prepare import prepare, read_tables
from layersift.progress import Reporter

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


OTHER = {  # of every setting of a recipe, by section: another value, which is another grid
    "model": {
        "name": "{place}/other",
        "revision": "main",
        "dtype": "bfloat16",
        "device": "cpu",
        "trust_remote_code": True,
        "quantization": "4bit",
        "stream": True,
    },
    "data": {
        "data": "{place}/more.jsonl",
        "task": "instruction",
        **{f"{role}_column": "prompt" for role in ("text", "text_pair", "label", "prompt", "response", "messages")},
        "image_column": "image",
        "choices_column": "choices",
        "split": "test",
        "max_length": 9,
        "chat_template": "{place}/o.jinja",
        "source_language": "en",
        "target_language": "de",
    },
    "train": {
        "max_samples": 30,
        "epochs": 2.0,
        "learning_rate": 0.5,
        "batch_size": 3,
        "gradient_accumulation": 2,
        "method": "pissa",
        "method_options": {"use_rslora": True},
        "rank": 4,
        "ranks": {"attention": 2},
        "alpha": 3.0,
        "dropout": 0.1,
        "target_modules": "q_proj",
        "scheduler": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.1,
        "loraplus_ratio": 4.0,
        "layer_decay": 0.9,
        "gradient_checkpointing": True,
        "precision": "bf16",
        "activation_cache": "off",
        "prefix_dropout": True,
        "shared_prompt": True,
        "strategy": "freezing",
    },
    "evaluate": {
        "data": "{place}/more.jsonl",
        "split": "validation",
        "max_samples": 9,
        "metrics": ["perplexity"],
        "exact_match": 3,
        "max_new_tokens": 9,
    },
    "select": {
        "ratio": 0.25,
        "top_n": 1,
        "budget_params": "1M",
        "position": "last",
        "criterion": "fisher",
        "threshold": 0.5,
        "objective": "time=0.5",
        "modules": True,
        "probe_steps": 7,
        "until_stable": 0.9,
        "max_samples": 9,
        "tower": "decoder",
        "compat": "paper",
        "seed": 3,
    },
}
# What may change: a run trains further variants, a comparison further rows, and neither trains what it has twice. A
# cell is known by its layers and its settings, scores by the settings of `select`, and a table says how it was made.
LIMITED = ("modules", "compat")  # which other settings of `select` exclude
MAY_CHANGE = {"output", "variants", "about", "smoke"}
ROWS = {
    "criteria",
    "sizes",
    "seeds",
    "methods",
    "strategies",
    "budgets",
    "random",
    "learning_rates",
    "tune",
    "race",
    "probe_share",
}


def test_every_setting_is_in_the_table():
    classes = (ModelSource, DataSettings, TrainSettings, EvaluateSettings, SelectSettings)
    for (section, values), cls in zip(OTHER.items(), classes, strict=True):
        assert set(values) == {f.name for f in fields(cls)}, section
    assert {f.name for f in fields(Recipe)} == {*OTHER, *MAY_CHANGE, "seed", "compare"}
    assert {f.name for f in fields(CompareSettings)} == {*ROWS, "retention"}


@pytest.mark.parametrize("kind", ["run", "comparison", "sweep"])
def test_a_grid_is_of_every_setting_that_its_cells_share(place, kind):
    shutil.copytree(place / "model", place / "other")
    begun = recipe(place)
    prepared = prepare(begun, read_tables(begun), Reporter())
    with open_grid(begun, kind, prepared):
        pass
    (place / "text.jsonl").write_text("".join(json.dumps({"text": f"w{i} w2"}) + "\n" for i in range(9)))
    of_text = CompareSettings(retention=str(place / "text.jsonl"))
    changed = {"seed": replace(begun, seed=1), "retention": replace(begun, compare=of_text)}
    changed["tower"] = replace(begun, select=replace(begun.select, tower="decoder"))
    for section, values in OTHER.items():
        for name, value in values.items():
            text = value.format(place=place) if isinstance(value, str) else value
            settings = getattr(begun, section)
            if name == "modules":  # needs a budget, and has no criterion
                settings = SelectSettings(budget_params="1M")
            elif name == "compat":
                settings = SelectSettings()
            changed[f"{section}.{name}"] = replace(begun, **{section: replace(settings, **{name: text})})
    for name, other in changed.items():
        if kind == "comparison" and name.startswith("select."):
            continue  # its scores are kept by them
        with pytest.raises(LayersiftError, match=rf"another recipe \(other .*{name}"), open_grid(other, kind, prepared):
            pass
    same = replace(begun, variants=("all",), about="x", compare=CompareSettings(criteria=["last"], seeds=1, sizes=[1]))
    with open_grid(same, kind, prepared):
        pass


def test_scores_are_of_every_setting_of_select_and_of_what_is_compared(place, monkeypatch):
    """A comparison's grid does not have them; what is kept of other ones is scored again."""
    scored = []
    monkeypatch.setattr(module, "score_all", lambda recipe, *given: scored.append(recipe))
    monkeypatch.setattr(module, "read_as", lambda cls, values, where: "kept")
    begun = recipe(place)
    settings = [
        replace(begun.select, **{name: value}) for name, value in OTHER["select"].items() if name not in LIMITED
    ]
    settings += [SelectSettings(budget_params="1M", modules=True), SelectSettings(compat="paper")]
    others = [replace(begun, select=one) for one in settings]
    more = ({"criteria": ["last"]}, {"probe_share": 0.2})
    others += [replace(begun, compare=CompareSettings(**of)) for of in more] + [replace(begun, seed=4)]
    of_sizes = {"prepared": None, "sizes": [1], "output": place, "reporter": Reporter()}
    for other in others:
        assert module.scoring_of(begun, **of_sizes) is None
        assert module.scoring_of(begun, **of_sizes) == "kept"
        assert module.scoring_of(other, **of_sizes) is None
    assert module.scoring_of(other, **of_sizes | {"sizes": [2]}) is None
    assert len(scored) == 2 * len(others) + 1
