"""`layersift train`: layers chosen on the way, columns of the selection, rows to watch it by."""

import json

import pytest
import torch
from safetensors.torch import load_file

WORDS = ["glad", "sad"]


@pytest.fixture
def data(tmp_path):
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": i % 3, "mood": WORDS[i % 2]} for i in range(24)]
    for name in ("rows", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def weights(run):
    return load_file(run / "adapter_model.safetensors")


def test_a_ratio_is_a_selection_made_on_the_way(data, bert_directory, tmp_path, call):
    common = ["--data", data, "--epochs", "1", "--seed", "5"]
    assert call("train", bert_directory, *common, "--ratio", "0.5", "-o", "short", cwd=tmp_path).returncode == 0
    call("select", bert_directory, "--data", data, "--seed", "5", "--ratio", "0.5", "-o", "s.json", cwd=tmp_path)
    call("train", bert_directory, *common, "--selection", "s.json", "-o", "long", cwd=tmp_path)
    short, long = (json.loads((tmp_path / run / "selection.json").read_text()) for run in ("short", "long"))
    assert short["mask"] == long["mask"]
    assert short["importance"] == long["importance"]
    one, other = weights(tmp_path / "short"), weights(tmp_path / "long")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_columns_are_those_of_the_selection_where_the_data_are_the_same(data, bert_directory, tmp_path, call):
    words = ["--data", data, "--label-column", "mood", "-o", "s.json"]
    assert call("select", bert_directory, *words, cwd=tmp_path).returncode == 0
    given = ["--selection", "s.json", "--dry-run", "--json"]
    same = json.loads(call("train", bert_directory, "--data", data, *given, "-o", "r", cwd=tmp_path).stdout)
    assert "label = 'mood'" in same["columns"]
    (tmp_path / "other.jsonl").write_text(data.read_text().replace("w1 ", "w2 "))
    other = json.loads(call("train", bert_directory, "--data", "other.jsonl", *given, "-o", "r", cwd=tmp_path).stdout)
    assert "label = 'label'" in other["columns"]
    asked = ["--label-column", "label", *given]
    wanted = json.loads(call("train", bert_directory, "--data", data, *asked, "-o", "r", cwd=tmp_path).stdout)
    assert "label = 'label'" in wanted["columns"]


def test_rows_to_watch_by_are_scored_and_the_best_is_kept(data, bert_directory, tmp_path, call):
    words = ["--data", data, "--ratio", "0.5", "--epochs", "6", "--eval-data", "held.jsonl", "--patience", "2"]
    result = call("train", bert_directory, *words, "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    looks = json.loads((tmp_path / "run" / "looks.json").read_text())["looks"]
    for look in looks:
        assert f"after {look['share']:.0%} of the steps: accuracy {look['score']:.4f}" in result.stdout
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    assert f"kept is {record['stopped']}" in result.stdout
    judged = json.loads(call("evaluate", "run", "--data", "held.jsonl", "--json", cwd=tmp_path).stdout)
    assert judged["metrics"]["accuracy"] == max(look["score"] for look in looks)
