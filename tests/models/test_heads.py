"""A classification head is read at the sample's own last token, and has its own numbering of the classes."""

import json

import pytest
import torch

from heads import TYPES, try_head
from layersift.config.recipe import ModelSource
from layersift.data.table import class_names, head_names, names_of_outputs, table_of
from layersift.errors import DataError
from layersift.models.load import load_config
from tiny import tiny
from training import FAST, classify
from whole_way import in_a_process_of_its_own
from words import tokenizer

FEW = ("bert", "gpt2", "llama", "qwen3", "bart", "t5")
BY_PAIRS = "funnel"  # pools by pairs of tokens, so that a longer neighbour moves the borders


def the_same_alone_and_in_a_batch(model_type):
    found = in_a_process_of_its_own(model_type, "classification", try_head, 30)
    if "built" not in found:
        pytest.skip(f"not built small: {found.get('stopped', 'no word')}")
    assert found.get("spread", 0) > 0, found
    assert found["apart"] <= 1e-3 * max(1.0, found["spread"]), found
    return found


@pytest.mark.parametrize("model_type", FEW)
def test_a_prediction_is_the_same_alone_and_in_a_batch(model_type):
    found = the_same_alone_and_in_a_batch(model_type)
    # Also where nobody has batched samples of one length, which other libraries do not.
    assert found["apart in any batch"] <= 1e-3 * max(1.0, found["spread"]), found


def test_where_tokens_are_pooled_samples_of_one_length_share_a_batch():
    the_same_alone_and_in_a_batch(BY_PAIRS)


CONSTANT_HERE = ("mra",)  # whose attention is a CUDA kernel, and gives zeros without one


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [t for t in TYPES if t not in (*FEW, BY_PAIRS, *CONSTANT_HERE)])
def test_predictions_of_all_others_are_the_same_alone_and_in_a_batch(model_type):
    the_same_alone_and_in_a_batch(model_type)


def rows(labels):
    return [{"text": f"w{i}", "label": labels[i % len(labels)]} for i in range(12)]


def test_classes_follow_the_head(caplog):
    table = table_of(rows(["neutral", "bad", "good"]), "rows")
    assert class_names(table) == ("bad", "good", "neutral")
    assert class_names(table, ("neutral", "good", "bad")) == ("neutral", "good", "bad")
    assert class_names(table, ("NEUTRAL", "Good", "bad")) == ("neutral", "good", "bad")
    two = table_of(rows(["bad", "good"]), "rows")
    assert class_names(two, ("good", "neutral", "bad")) == ("good", "neutral", "bad")
    assert class_names(two, ("yes", "no", "perhaps")) == ("bad", "good")
    assert not caplog.records
    assert class_names(two, ("yes", "no")) == ("bad", "good")
    assert "the model's head knows yes, no, the data have bad, good: numbered by spelling" in caplog.text
    caplog.clear()
    assert class_names(table_of(rows([0, 1]), "rows"), ("yes", "no")) == ("0", "1")
    assert "places of the model's head, which calls them yes, no" in caplog.text


def save_head(directory, names):
    model = tiny("bert")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.config.architectures = ["BertForSequenceClassification"]
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return load_config(ModelSource(str(directory)))


def test_a_heads_names_stay_where_the_labels_are_its_places(tmp_path, bert_directory):
    config = save_head(tmp_path / "model", ["good", "bad"])
    assert names_of_outputs(("0", "1"), config) == ("good", "bad")
    assert names_of_outputs(("bad", "good"), config) == ("bad", "good")
    assert names_of_outputs(("0", "1", "2"), config) == ("0", "1", "2")
    setting = classify(str(tmp_path / "model"))  # whose labels are 0 and 1
    setting.train(tmp_path / "run", FAST, merge=True)
    merged = json.loads((tmp_path / "run" / "merged" / "config.json").read_text())
    assert merged["id2label"] == {"0": "good", "1": "bad"}
    assert merged["label2id"] == {"good": 0, "bad": 1}


def test_names_of_a_trained_head(tmp_path):
    assert head_names(save_head(tmp_path / "a", ["good", "bad"])) == ("good", "bad")
    assert head_names(save_head(tmp_path / "b", ["LABEL_0", "LABEL_1"])) == ()
    config = save_head(tmp_path / "c", ["good", "bad"])
    config.architectures = ["BertModel"]
    assert head_names(config) == ()


def test_a_trained_head_is_judged_by_its_own_numbering(tmp_path, call):
    """Its own answers as labels are all right, whatever the order of the names."""
    save_head(tmp_path / "model", ["zebra", "ape"])
    texts = [f"w{i} w{i + 3} w{2 * i % 40}" for i in range(30)]
    tok = tokenizer()
    model = tiny("bert")
    with torch.no_grad():
        logits = torch.cat([model(**tok(text, return_tensors="pt")).logits for text in texts])
    apart = (logits[:, 0] - logits[:, 1]).sort().values
    middle = apart[14:16].mean()  # between two rows: one at the border would fall to either side by rounding
    said = ["zebra" if a - b > middle else "ape" for a, b in logits.tolist()]
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["classifier.bias"] -= torch.tensor([float(middle), 0.0])
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, said, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    recipe = {
        "model": str(tmp_path / "model"),
        "data": str(tmp_path / "rows.jsonl"),
        "output": str(tmp_path / "out"),
        "evaluate": str(tmp_path / "rows.jsonl"),
        "variants": ["selected", "base"],
        "select": {"criterion": "last"},
        "train": {"epochs": 1, "batch_size": 8},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    done = call("run", tmp_path / "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    untouched = next(r for r in found["results"] if r["variant"] == "base")
    assert untouched["metrics"]["accuracy"] == 1.0
    assert "random" not in done.stdout.replace("at random", "")
    assert "ape" in done.stdout


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["01", "1"], r"row 1 and rows, row 2: column 'label' holds '01' and '1'"),
        ([1, "1"], "write one class in one way"),
        ([True, "True"], r"'label' holds True and 'True', not alike"),
        (["a", ""], "row 2: column 'label' is empty; leave out rows without a label"),
        (["a", " "], "row 2: column 'label' is empty"),
        ([0, 1, -1], r"row 3: column 'label' holds -1 beside 0.*\(4 rows\)"),
        ([0.0, float("nan")], "row 2: column 'label' holds nan, no label"),
        (["nan", "1"], "row 1: column 'label' holds 'nan', no label"),
        (["a", ["b"]], r"multi-label\) are not supported"),
    ],
)
def test_labels_that_say_nothing_are_refused(labels, said):
    with pytest.raises(DataError, match=said):
        table_of(rows(labels), "rows")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["01", "02", "10"], ("01", "02", "10")),
        (["1", "2", "10"], ("1", "2", "10")),
        ([-1, 1], ("-1", "1")),
        (["b", "a"], ("a", "b")),
        ([True, False], ("False", "True")),
    ],
)
def test_classes_keep_their_spelling(labels, classes):
    table = table_of(rows(labels), "rows")
    assert class_names(table) == classes
    assert f"{len(classes)} classes: {classes[0]} ({12 // len(classes)})" in table.described()
