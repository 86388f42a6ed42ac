"""`layersift predict`: what a run says of rows without labels, in order, and as the model alone would say it."""

import csv
import json

import pytest
import torch
from sklearn.metrics import classification_report, confusion_matrix

import layersift
from layersift.api import train
from layersift.config.train import TrainSettings
from layersift.evaluation.load_run import load_run
from layersift.evaluation.metrics import by_class, majority_of
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from tiny import tiny

CLASSES = ["glad", "mad", "odd", "sad"]
TEXTS = [f"w{i} w{(i * 7) % 40} " + "w3 " * (i % 5) for i in range(24)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(name, directory, rows, place, **settings):
    selection = make_selection(directory, "weights:0", find_stack(tiny(name)), [1, 3], DataRecord(), "picked")
    settings = TrainSettings(**{"epochs": 1, "learning_rate": 5e-3, **settings})
    train(directory, jsonl(place / "rows.jsonl", rows), selection, place / "run", settings)
    return place / "run"


@pytest.fixture(scope="module")
def classifier(bert_directory, tmp_path_factory):
    rows = [{"text": text, "label": CLASSES[i % 4]} for i, text in enumerate(TEXTS)]
    return trained("bert", bert_directory, rows, tmp_path_factory.mktemp("classifier"), epochs=4)


@pytest.fixture(scope="module")
def writer(llama_directory, tmp_path_factory):
    rows = [{"prompt": text, "response": "w5 w6"} for text in TEXTS]
    return trained("llama", llama_directory, rows, tmp_path_factory.mktemp("writer"))


def test_columns_of_the_data_stand_beside_the_predictions(classifier, writer, tmp_path, call):
    rows = [{"text": text, "id": f"t,{i}", "tags": ["a", i], "date, sent": i / 2} for i, text in enumerate(TEXTS)]
    data = jsonl(tmp_path / "new.jsonl", [*rows[:-1], {"text": TEXTS[-1]}])
    keep = ["--keep", "id,tags", "--keep", "date, sent"]
    result = call("predict", classifier, "--data", data, *keep, "-o", tmp_path / "p.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "p.csv").open() as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["row", "id", "tags", "date, sent", "label", "probability"]
    assert [row["id"] for row in written] == [row["id"] for row in rows[:-1]] + [""]
    assert json.loads(written[3]["tags"]) == ["a", 3]
    call("predict", classifier, "--data", data, *keep, "-o", tmp_path / "p.jsonl", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["tags"] for line in lines] == [row["tags"] for row in rows[:-1]] + [None]
    assert [line["label"] for line in lines] == [row["label"] for row in written]
    # What stands in an answer's place is the data's own, not what the model is asked with.
    asked = jsonl(tmp_path / "asked.jsonl", [{"prompt": text, "response": "w1"} for text in TEXTS[:4]])
    words = ["--keep", "response", "--max-new-tokens", "2", "--json"]
    answered = json.loads(call("predict", writer, "--data", asked, *words, cwd=tmp_path).stdout)
    assert [row["response"] for row in answered] == ["w1"] * 4
    assert list(answered[0]) == ["row", "response", "answer"]


def test_a_column_named_like_a_predictions_stands_beside_it_under_another_name(classifier, tmp_path, call):
    rows = [{"text": text, "label": "yes", "data_label": i, "row": -i} for i, text in enumerate(TEXTS)]
    data = jsonl(tmp_path / "new.jsonl", rows)
    done = call("predict", classifier, "--data", data, "--keep", "label,data_label,row", "--json", cwd=tmp_path)
    written = json.loads(done.stdout)
    assert list(written[0]) == ["row", "data_data_label", "data_label", "data_row", "label", "probability"]
    assert [one["row"] for one in written] == [i + 1 for i in range(len(TEXTS))]
    assert {one["data_data_label"] for one in written} == {"yes"}
    assert [one["data_label"] for one in written] == list(range(len(TEXTS)))
    assert [one["data_row"] for one in written] == [-i for i in range(len(TEXTS))]


def test_labels_and_probabilities_are_the_models_own(classifier, tmp_path, call):
    data = jsonl(tmp_path / "new.jsonl", [{"text": text} for text in TEXTS])
    result = call("predict", classifier, "--data", data, "-o", tmp_path / "p.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(i + 1) for i in range(len(TEXTS))]
    _, loaded, encoder = load_run(classifier)
    for row, text in zip(rows, TEXTS, strict=True):
        with torch.no_grad():
            (logits,) = loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits
        probabilities = dict(zip(encoder.classes, logits.double().softmax(-1).tolist(), strict=True))
        assert row["label"] == max(probabilities, key=probabilities.get)
        assert float(row["probability"]) == pytest.approx(probabilities[row["label"]], rel=1e-5)


def test_the_screen_holds_the_predictions_and_nothing_else(classifier, tmp_path, call):
    data = jsonl(tmp_path / "new.jsonl", [{"text": text, "label": "unheard of"} for text in TEXTS])
    shown = call("predict", classifier, "--data", data, cwd=tmp_path).stdout
    rows = list(csv.DictReader(shown.splitlines()))
    assert len(rows) == len(TEXTS)
    listed = json.loads(call("predict", classifier, "--data", data, "--json", cwd=tmp_path).stdout)
    assert [str(p["row"]) for p in listed] == [row["row"] for row in rows]
    assert [p["label"] for p in listed] == [row["label"] for row in rows]
    assert layersift.predict(classifier, data) == listed


def test_answers_are_generated_for_prompts_without_a_response(writer, tmp_path, call):
    data = jsonl(tmp_path / "new.jsonl", [{"prompt": text} for text in TEXTS[:5]])
    words = ["predict", writer, "--data", data, "--max-new-tokens", "6", "-o", tmp_path / "p.jsonl"]
    assert call(*words, cwd=tmp_path).returncode == 0
    found = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [each["row"] for each in found] == [1, 2, 3, 4, 5]
    _, loaded, _ = load_run(writer)
    tokenizer = loaded.tokenizer
    for each, text in zip(found, TEXTS, strict=False):
        asked = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": loaded.pad_id}
        written = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=6, **ends)
        new = written[0, inputs["input_ids"].shape[1] :]
        assert each["answer"] == tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("last", [True, False])
def test_the_last_turn_of_a_conversation_is_answered(last, llama_directory, tmp_path, call):
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    run = trained("llama", llama_directory, [{"messages": turns}] * 12, tmp_path)
    asked = [*turns, {"role": "user", "content": "w9"}] + [{"role": "assistant", "content": "w8"}] * last
    data = jsonl(tmp_path / "new.jsonl", [{"messages": asked}])
    given = json.loads(call("predict", run, "--data", data, "--json", "--max-new-tokens", "4", cwd=tmp_path).stdout)
    _, loaded, _ = load_run(run)
    inputs = loaded.tokenizer.apply_chat_template(
        asked[:3], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=4, pad_token_id=loaded.pad_id)
    new = written[0, inputs["input_ids"].shape[1] :]
    assert given == [{"row": 1, "answer": loaded.tokenizer.decode(new, skip_special_tokens=True)}]


def test_numbers_of_a_regression(bert_directory, tmp_path, call):
    rows = [{"text": text, "label": i / 7} for i, text in enumerate(TEXTS)]
    run = trained("bert", bert_directory, rows, tmp_path)
    data = jsonl(tmp_path / "new.jsonl", [{"text": text} for text in TEXTS[:3]])
    found = json.loads(call("predict", run, "--data", data, "--json", cwd=tmp_path).stdout)
    _, loaded, _ = load_run(run)
    for each, text in zip(found, TEXTS, strict=False):
        with torch.no_grad():
            value = loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits.item()
        assert each["value"] == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "output", "said"),
    [
        ([{"words": "w1"}], "p.csv", "row 1: nothing in column 'text', which the model reads; has 'words'"),
        ([{"text": "w1"}, {"text": None}], "p.csv", "row 2: nothing in column 'text'"),
        ([{"text": "w1"}], "p.txt", ".csv or .jsonl"),
        ([{"text": "w1"}], "rows.jsonl", "exists"),
        ([{"text": ""}], "p.csv", "row 1"),
    ],
)
def test_bad_rows_and_places(rows, output, said, classifier, tmp_path, call):
    data = jsonl(tmp_path / "new.jsonl", rows)
    (tmp_path / "rows.jsonl").write_text("")
    result = call("predict", classifier, "--data", data, "-o", tmp_path / output, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert not (tmp_path / "p.csv").exists()


def test_evaluate_tells_of_each_class_and_of_the_majority(classifier, tmp_path, call):
    rows = [{"text": text, "label": CLASSES[(i * i) % 3]} for i, text in enumerate(TEXTS)]  # none of the fourth
    data = jsonl(tmp_path / "test.jsonl", rows)
    words = ["evaluate", classifier, "--data", data, "--wrong", "3"]
    found = json.loads(call(*words, "--json", cwd=tmp_path).stdout)
    predictions = json.loads(call("predict", classifier, "--data", data, "--json", cwd=tmp_path).stdout)
    truth, predicted = [row["label"] for row in rows], [each["label"] for each in predictions]
    by_hand_ = classification_report(truth, predicted, labels=CLASSES, output_dict=True, zero_division=0)
    report = found["by_class"]
    assert report["names"] == CLASSES
    for place, name in enumerate(CLASSES):
        assert report["recall"][place] == pytest.approx(by_hand_[name]["recall"])
        assert report["precision"][place] == pytest.approx(by_hand_[name]["precision"])
        assert report["rows"][place] == by_hand_[name]["support"]
    assert report["confusion"] == confusion_matrix(truth, predicted, labels=CLASSES).tolist()
    assert found["majority"] == {"name": "glad", "accuracy": {"": truth.count("glad") / len(truth)}}
    missed = [i for i, (a, b) in enumerate(zip(truth, predicted, strict=True)) if a != b][:3]
    assert [each["where"] for each in found["wrong"]] == [f"{data}, row {i + 1}" for i in missed]
    shown = call(*words, cwd=tmp_path).stdout
    assert "always 'glad', the most common class in training: accuracy" in shown
    assert "is, taken for" in shown


def test_a_figure_without_rows_is_zero():
    report = by_class(["a", "b", "c"], [0, 0, 1], [0, 1, 1])
    assert report.recall == (0.5, 1.0, 0.0)
    assert report.precision == (1.0, 0.5, 0.0)
    assert report.confusion == ((1, 1, 0), (0, 1, 0), (0, 0, 0))


def test_the_majority_is_that_of_training():
    found = majority_of({"a": 5, "b": 9}, {"": ["a", "a", "b", "c"]})
    assert (found.name, found.accuracy) == ("b", {"": 0.25})
    assert majority_of({}, {"": []}) is None
