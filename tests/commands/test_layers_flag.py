"""`--layers`: the layers that people name themselves, in every command that takes a selection."""

import json

import pytest
import torch
from safetensors.torch import load_file

import layersift


@pytest.fixture
def data(tmp_path):
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": i % 3} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def adapted(run):
    names = load_file(run / "adapter_model.safetensors")
    return {int(name.split("layer.")[1].split(".")[0]) for name in names if "layer." in name}


def test_train_adapts_the_layers_that_are_named(data, bert_directory, tmp_path, call):
    common = ["train", bert_directory, "--data", data, "--epochs", "1"]
    result = call(*common, "--layers", "last:1,0", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "layers: 0, 3, 2 of 4 counted from 0" in result.stdout
    assert adapted(tmp_path / "run") == {0, 3}
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert (selection["mask"], selection["rule"]) == ("1001", "given as last:1,0")
    call(*common, "--selection", "run/selection.json", "-o", "again", cwd=tmp_path)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "4"], "there is no layer 4; the layers are 0 to 3"),
        (["--layers", "1,0-2"], "layer 1 is named twice"),
        (["--layers", "last:5"], "last:4 is the most"),
        (["--layers", ""], "--layers is empty"),
        (["--layers", "1", "--ratio", "0.5"], "one of them"),
        (["--layers", "1", "--selection", "s.json"], "one of them"),
        (["--layers", "1-2", "--rank-of", "3=4"], "3"),
    ],
)
def test_train_refuses_what_names_no_layers(more, said, data, bert_directory, tmp_path, call):
    result = call("train", bert_directory, "--data", data, *more, "-o", "run", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


def test_inspect_plans_them(bert_directory, tmp_path, call):
    command = ["inspect", bert_directory, "--plan", "--layers", "every:2", "--json"]
    result = json.loads(call(*command, cwd=tmp_path).stdout)
    assert result["selection"]["mask"] == "1010"
    told = call(*command[:-1], cwd=tmp_path).stdout
    assert "layers: 0, 2, 2 of 4, counted from 0" in told
    refused = call(*command, "--selection", "s.json", cwd=tmp_path)
    assert refused.returncode == 2


def test_export_writes_them(llama_directory, tmp_path, call):
    common = ["export", "--layers", "1-2", "--model", llama_directory]
    result = json.loads(call(*common, "--to", "peft", "--json", cwd=tmp_path).stdout)
    assert result["layers"] == [1, 2]
    assert {name.split(".layers.")[1][0] for name in result["adapted"]} == {"1", "2"}
    for wrong in (common[:3], [*common, "x.json"], [*common, "--to", "serving"], ["export"]):
        assert call(*wrong, *([] if "--to" in wrong else ["--to", "peft"]), cwd=tmp_path).returncode == 2


def test_python_names_them_too(data, bert_directory, tmp_path):
    record = layersift.train(
        str(bert_directory), str(data), "first:2", tmp_path / "run", layersift.TrainSettings(epochs=1.0)
    )
    assert record.mask == "1100"
    chosen = layersift.Selection.of_layers(str(bert_directory), "last:3")
    assert (chosen.mask, chosen.rule) == ("0111", "given as last:3")
    with pytest.raises(layersift.SelectionError, match="no layer 9"):
        layersift.Selection.of_layers(str(bert_directory), "9")
