"""Records as files: read back as they were, older versions still read, edited ones refused with the path of the key."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from layersift.config.quantities import layers_of, mask_of
from layersift.config.recipe import recipe_of
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError, SelectionError
from layersift.evaluation.load_run import load_run
from layersift.experiment.grid import open_grid
from layersift.records.runs import Environment, Result, RunRecord
from layersift.records.selection import LayerScores, Selection, Stop, dominated, schema_of
from tiny import selection_of, tiny
from training import classify
from variants import cell_of

OLD = Path(__file__).parent / "schema-1"


def test_keys_of_older_versions_are_read_wherever_they_stand(tmp_path):
    record = json.loads((OLD / "layersift.json").read_text())
    record["settings"]["prefix_cache"] = "off"
    (tmp_path / "layersift.json").write_text(json.dumps(record))
    assert RunRecord.load(tmp_path).settings.activation_cache == "off"
    given = {"model": "m", "data": "d", "output": "o", "train": {"prefix_cache": "off"}}
    assert recipe_of(given, "r").train.activation_cache == "off"
    given["train"]["activation_cache"] = "auto"
    with pytest.raises(LayersiftError, match="prefix_cache"):
        recipe_of(given, "r")


def test_a_selection_of_version_1_is_read_as_it_was():
    values = json.loads((OLD / "selection.json").read_text())
    assert values["schema_version"] == 1
    found = Selection.load(OLD / "selection.json")
    assert found.mask == values["mask"] == "0101"
    assert found.data.rows == 40
    assert found.data.columns == {"text": "text", "label": "label"}
    assert found.until_stable == Stop(**values["until_stable"])
    assert [list(edges) for edges in found.interval] == values["interval"]
    again = found.to_json()
    assert again.pop("schema_version") == 2
    assert again["data"].pop("classes") == {}  # of which earlier versions said nothing
    assert again == {name: value for name, value in values.items() if name != "schema_version"}


def test_a_run_directory_of_version_1_loads_with_its_adapters(tmp_path, bert_directory):
    setting = classify(bert_directory)
    setting.train(tmp_path / "run", TrainSettings(epochs=0.2, ranks={"attention": 4}))
    new = RunRecord.load(tmp_path / "run")
    old = json.loads((OLD / "layersift.json").read_text())
    assert old["schema_version"] == 1
    old["source"]["name"], old["model_revision"] = str(bert_directory), new.model_revision
    assert set(old["mask"]) == {"0", "1"}
    old["mask"] = new.mask  # a record of other layers than its adapters is refused
    (tmp_path / "run" / "layersift.json").write_text(json.dumps(old))
    record, loaded, encoder = load_run(tmp_path / "run")
    assert (record.settings.ranks, record.settings.epochs, record.mask) == ({"attention": 4}, 1.0, new.mask)
    assert encoder.classes == ("0", "1")
    assert any("lora_A" in name for name, _ in loaded.model.named_parameters())


def test_a_record_with_a_field_more_than_an_older_one_still_reads_the_older_one(tmp_path):
    values = json.loads((OLD / "layersift.json").read_text())
    assert "activation_cache_stopped" not in values
    (tmp_path / "layersift.json").write_text(json.dumps(values))
    assert RunRecord.load(tmp_path).activation_cache_stopped is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "of schema version 3; this layersift reads versions 1 and 2. Update layersift"),
        ({"settings": {"epochs": "many"}}, "layersift.json: settings.epochs: expected float, got str"),
        ({"settings": {"epoch": 1}}, "layersift.json, settings: unknown key 'epoch'; did you mean 'epochs'?"),
        ({"encoder": {"kind": "poetry"}}, "layersift.json: encoder.kind: "),
        ({"encoder": {"kind": "text", "classes": ["a", 3]}}, "encoder.classes[1]: expected str, got int"),
        ({"source": {"name": None}}, "source.name: expected str, got null"),
        ({"samples": 1.5}, "samples: expected int, got float"),
        ({"steps": None}, "steps: expected int, got null"),
    ],
)
def test_edited_records_are_refused_with_the_path_of_the_key(tmp_path, change, message):
    values = json.loads((OLD / "layersift.json").read_text()) | change
    (tmp_path / "layersift.json").write_text(json.dumps(values))
    with pytest.raises(LayersiftError) as error:
        RunRecord.load(tmp_path)
    assert message in str(error.value)


def test_a_selection_of_more_layers_than_any_model_has_is_refused_at_once(tmp_path):
    values = json.loads((OLD / "selection.json").read_text()) | {"num_layers": 10**9}
    (tmp_path / "s.json").write_text(json.dumps(values))
    with pytest.raises(SelectionError, match=r"s\.json: num_layers 1000000000 is out of range"):
        Selection.load(tmp_path / "s.json")


def test_selections_that_say_the_same_are_equal_and_hash_alike():
    one = selection_of(tiny("bert"), [1, 3])
    later = replace(one, seconds={"score": 9.0}, command="layersift select", versions={"torch": "1"})
    other = replace(one, selected_layers=(0, 1))
    assert one == later
    assert len({one, later, other}) == 2


def test_a_selection_prints_itself_well():
    found = Selection.load(OLD / "selection.json")
    assert str(found) == "0101  (top 2 of 4; cka at mean, 40 samples)"
    assert repr(found) == "<Selection 0101 of bert: top 2 of 4>"
    page = replace(found, undefined={0: "<constant>"}, importance=(None, *found.importance[1:]))._repr_html_()
    assert page.count("<tr>") == 5
    assert "&lt;constant&gt;" in page
    assert "<td>selected</td>" in page


def test_results_read_back(tmp_path):
    cell = cell_of("0110", 3, "validation", method="dora", learning_rate=0.001, rank=4, alpha=8.0)
    made = Environment({"torch": "2"}, "cpu", 2)
    result = Result(
        cell, {"accuracy": 0.5, "f1": None}, 2, (0.0, 1.0), (2.0, 3.0), 0.5, 10, 1.5, None, 7, 0.1, made=made
    )
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    assert Result.load(tmp_path / "r.json").made == made
    assert cell.file_name(cell.train) == "dora-r4-lr0.001-s3-validation-0110"
    assert cell.layers == (1, 2)
    values = json.loads((tmp_path / "r.json").read_text())
    flat = {"mask": "0110", "seed": 3, "method": "dora", "learning_rate": 0.001, "rank": 4, "alpha": 8, "epochs": 0.0}
    old = values | {"cell": flat | {"judged": "validation", "strategy": "", "target_modules": ""}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert Result.load(tmp_path / "old.json") == replace(result, cell=cell.with_settings(epochs=None))
    (tmp_path / "r.json").write_text(json.dumps(values | {"outcomes": [0, "x"]}))
    with pytest.raises(LayersiftError, match=r"r\.json: outcomes\[1\]: expected float, got str"):
        Result.load(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(LayersiftError, match="not the result of a training"):
        Result.load(tmp_path / "r.json")


def test_scores_beyond_a_threshold_follow_the_direction():
    scores = LayerScores("x", (0.1, 0.5, None, 0.9), {2: "?"}, (None,) * 4, 8, 0.0)
    assert scores.beyond(0.5) == (3,)
    assert replace(scores, direction="low").beyond(0.5) == (0,)
    assert replace(scores, direction="low").ranking == (0, 1, 3)
    assert dominated((None, 0.5, 0.51, 0.2)) == [2]


def test_masks_and_layers_say_the_same():
    assert mask_of((0, 3), 5) == "10010"
    assert layers_of("10010") == (0, 3)


def test_schemas_describe_the_files_that_are_written(tmp_path, bert_directory):
    jsonschema = pytest.importorskip("jsonschema")
    kept = json.loads((OLD / "selection.json").read_text())
    jsonschema.validate(kept, schema_of("selection"))
    jsonschema.validate(Selection.load(OLD / "selection.json").to_json(), schema_of("selection"))
    jsonschema.validate(json.loads((OLD / "layersift.json").read_text()), schema_of("run"))
    recipe = {"model": "m", "data": "d.jsonl", "output": "o", "variants": ["all"], "train": {"epochs": 1}}
    jsonschema.validate(recipe, schema_of("recipe"))
    for wrong in ({"trian": {}}, {"train": {"epochs": 0}}, {"compare": {"criteria": [3]}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(recipe | wrong, schema_of("recipe"))
    with pytest.raises(LayersiftError, match="unknown kind of schema 'page'"):
        schema_of("page")


@pytest.mark.parametrize("kind", ["recipe", "selection", "run"])
def test_a_schema_says_what_a_file_is_without_the_python(kind):
    told = [entry["description"] for entry in schema_of(kind)["$defs"].values() if "description" in entry]
    assert told
    assert [text for text in told if ">>>" in text or "Args:" in text] == []


def test_an_output_of_something_else_is_no_grid(tmp_path, bert_directory):
    (tmp_path / "out").mkdir()
    shutil.copy(OLD / "selection.json", tmp_path / "out" / "selection.json")

    rows = [{"text": f"w{i} w{i % 7}", "label": i % 2} for i in range(24)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model": str(bert_directory), "data": str(tmp_path / "d.jsonl"), "output": str(tmp_path / "out")}
    with pytest.raises(LayersiftError, match="holds no grid of trainings"), open_grid(recipe_of(given, "r")):
        pass
