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
    split = call("train", bert_directory, "--data", data, *given[:3], "--hold-back", "0.2", "-o", "r", cwd=tmp_path)
    assert "with those that are held back here" in split.stderr
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


def test_without_a_selection_and_a_ratio_all_layers_are_trained_and_none_is_scored(
    data, bert_directory, tmp_path, call
):
    result = call("train", bert_directory, "--data", data, "--epochs", "1", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "reading representations" not in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("layers")]
    assert "all 4" in line
    assert "--selection" in line
    assert "--ratio" in line
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert (selection["mask"], selection["metric"], selection["num_samples"]) == ("1111", "", 0)
    rate = json.loads((tmp_path / "run" / "layersift.json").read_text())["settings"]["learning_rate"]
    assert f"learning rate: {rate:g} " in result.stdout
    adapted = {name.split(".layer.")[1].split(".")[0] for name in weights(tmp_path / "run") if ".layer." in name}
    assert adapted == {"0", "1", "2", "3"}


@pytest.fixture
def doubled(tmp_path):
    """Rows of which half come again in capitals; the column of the second class holds no number."""
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": WORDS[i % 2], "id": f"t{i}"} for i in range(40)]
    rows += [{**row, "text": row["text"].upper()} for row in rows[:20]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("layers", [[], ["--ratio", "0.5", "--no-prefix-dropout", "--patience", "2"]])
def test_rows_held_back_are_kept_and_the_finished_run_is_judged_on_them(
    doubled, bert_directory, tmp_path, call, layers
):
    words = ["--data", doubled, "--hold-back", "0.25", "--epochs", "4", "--learning-rate", "0.01", *layers]
    result = call("train", bert_directory, *words, "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    held_back = record["held_back"]
    kept = [json.loads(line) for line in (tmp_path / "run" / held_back["file"]).read_text().splitlines()]
    every = [json.loads(line) for line in doubled.read_text().splitlines()]
    assert kept == [every[number - 1] for number in held_back["rows"]]
    trained = {every[i]["text"].lower() for i in range(60) if i + 1 not in held_back["rows"]}
    assert not trained & {row["text"].lower() for row in kept}
    assert record["samples"] == record["data"]["rows"] == 60 - len(kept)
    assert {row["label"] for row in kept} == set(WORDS)
    judged = json.loads(call("evaluate", "run", "--data", "run/held-back.jsonl", "--json", cwd=tmp_path).stdout)
    assert judged["metrics"] == pytest.approx(held_back["metrics"])
    assert judged["data"]["fingerprint"] == held_back["fingerprint"]
    assert judged["majority"]["accuracy"][""] == pytest.approx(held_back["majority_accuracy"])
    assert held_back["class_rows"] == judged["data"]["classes"]
    low, high = held_back["interval"]
    assert low <= held_back["metrics"]["accuracy"] <= high
    said = f"accuracy {held_back['metrics']['accuracy']:.4f} ({low:.4f} to {high:.4f}"
    assert said in result.stdout
    assert f"{len(kept)} of 60 rows" in result.stdout
    looks = json.loads((tmp_path / "run" / "looks.json").read_text())["looks"]
    scores = [look["score"] for look in looks]
    if layers:
        assert held_back["chose_the_stop"]
        assert held_back["metrics"]["accuracy"] == max(scores)
    else:
        assert held_back["metrics"]["accuracy"] == scores[-1]
    never = [name for name, count in held_back["class_predicted"].items() if not count]
    assert all(repr(name) in result.stderr for name in never)


def test_what_is_never_predicted_is_said(bert_directory, tmp_path, call):
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": "rare" if i % 8 == 0 else "usual"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data", "rows.jsonl", "--hold-back", "0.4", "--epochs", "1", "--learning-rate", "0.001"]
    result = call("train", bert_directory, *words, "-o", "run", cwd=tmp_path)
    held_back = json.loads((tmp_path / "run" / "layersift.json").read_text())["held_back"]
    assert held_back["class_predicted"] == {"rare": 0, "usual": 16}
    assert (held_back["class_rows"]["rare"], held_back["class_right"]["rare"]) == (2, 0)
    assert "'rare' (2 of" in result.stderr
    assert held_back["majority"] == "usual"


def test_held_back_rows_of_a_decoder_and_of_another_split_are_told_apart(llama_directory, tmp_path, call):
    rows = [{"prompt": f"w{i} w{(i * 7) % 40}", "response": f"w{i % 9} w3"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data", "rows.jsonl", "--hold-back", "0.25", "--epochs", "1", "-o", "run"]
    result = call("train", llama_directory, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    held_back = json.loads((tmp_path / "run" / "layersift.json").read_text())["held_back"]
    judged = json.loads(call("evaluate", "run", "--data", "run/held-back.jsonl", "--json", cwd=tmp_path).stdout)
    assert judged["metrics"] == pytest.approx(held_back["metrics"])
    assert held_back["majority"] is None
    assert held_back["interval"][0] < held_back["metrics"]["loss"] < held_back["interval"][1]
