"""What is read back, comes from elsewhere or goes to a screen: typed, bounded, and told by file and key."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from layersift.advise.trial import kept_pace
from layersift.config.fields import parse_yaml
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource
from layersift.config.train import TrainSettings, parse_strategy
from layersift.data.rows import read_rows
from layersift.data.table import class_counts, table_of
from layersift.errors import DataError, LayersiftError, ModelError, visible, wrap_library_errors
from layersift.evaluation.load_run import load_run
from layersift.export.publish import stage
from layersift.files import read_number
from layersift.models.source import require_finite_files
from layersift.training.watch import LOG_FILE, read_log, read_looks
from training import FAST, classify, interrupted_at


@pytest.fixture(scope="module")
def run(tmp_path_factory, bert_directory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    classify(bert_directory).train(directory, FAST)
    return directory


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', "\udcff", "[1]", '{"step": "x", "loss": 1}', "[" * 10**5, "null"])
def test_a_log_that_was_cut_short_is_read_as_far_as_it_goes(cut, tmp_path):
    entry = json.dumps({"step": 1, "loss": 0.5})
    (tmp_path / LOG_FILE).write_bytes(f"{entry}\n{cut}\n{entry}\n{cut}".encode(errors="surrogateescape"))
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}] * 2


def test_a_cut_log_and_a_strange_directory_do_not_block_a_resumed_training(tmp_path, bert_directory, call, monkeypatch):
    rows = [{"text": f"w{i} w{i % 7}", "label": i % 2} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", bert_directory, "--data", "rows.jsonl", "--epochs", "4", "--batch-size", "4", "-o", "run", "-q"]
    with interrupted_at(monkeypatch, 5):
        assert call(*words, cwd=tmp_path).returncode == 130
    partial = tmp_path / "run.partial"
    (partial / "checkpoints" / "checkpoint-x").mkdir()
    with (partial / LOG_FILE).open("a") as log:
        log.write('{"step": 6, "lo')
    resumed = call(*words, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert [e["step"] for e in read_log(tmp_path / "run")] == list(range(1, 25))


@pytest.mark.parametrize(
    "content", ['{"seconds": "x"}', '{"seconds": -1}', '{"seconds": 1e999}', "{}", "[]", "", '{"seconds": true}']
)
def test_numbers_that_are_kept_are_typed(content, tmp_path):
    (tmp_path / "pace.json").write_text(content.replace("seconds", "flops_a_second"))
    (tmp_path / "seconds.json").write_text(content)
    with pytest.raises(LayersiftError, match=r"seconds\.json"):
        read_number(tmp_path / "seconds.json", "seconds")
    with pytest.raises(LayersiftError, match=r"pace\.json"):
        kept_pace(tmp_path)


@pytest.mark.parametrize("looks", [3, "x", {"share": 1}, [3], [{"share": "x"}]])
def test_looks_that_are_kept_are_typed(looks, tmp_path):
    (tmp_path / "looks.json").write_text(json.dumps({"looks": looks}))
    with pytest.raises(LayersiftError, match=r"looks\.json"):
        read_looks(tmp_path)


GOOD = {"run": "run", "metrics": {"accuracy": 0.5}, "samples": 8, "data": {"source": "rows.jsonl"}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metrics": {"accuracy": "high"}}, "metrics"),
        ({"metrics": [1]}, "metrics"),
        ({"metrics": {"accuracy": 1e999}}, "accuracy"),
        ({"samples": "many"}, "samples"),
        ({"samples": None}, "samples"),
        ({"data": "rows.jsonl"}, "data"),
        ({"data": {}}, r"data\.source"),
        ({"data": {"source": 3}}, r"data\.source"),
        ({"run": 5}, "run"),
        ({"trained_digest": "0" * 64}, "others than those"),
    ],
)
def test_an_evaluation_for_the_card_is_typed(change, named, run, tmp_path):
    digest = json.loads((run / "layersift.json").read_text())["trained_digest"]
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({**GOOD, "trained_digest": digest} | change))
    with pytest.raises(LayersiftError, match=rf"evaluation\.json.*{named}"):
        stage(run, tmp_path / "place", "me/name", "me/base", [file])


@pytest.mark.parametrize("base", ["./bert", "/tmp/bert", "a/b/c", "me/na me", "../base"])
def test_what_is_pushed_names_no_place_of_this_machine(base, run, tmp_path):
    with pytest.raises(LayersiftError, match="--base-model"):
        stage(run, tmp_path / "place", "me/name", base, [])


@pytest.mark.parametrize("repo", ["name", "me/na me", "./name", "a/b/c", "me/", "what ever/x y"])
def test_what_is_pushed_goes_to_a_repository(repo, run, tmp_path):
    with pytest.raises(LayersiftError, match="no repository of the Hub"):
        stage(run, tmp_path / "place", repo, "me/base", [])


def test_a_run_whose_record_is_of_other_layers_is_not_loaded(copied):
    load_run(copied)
    record = json.loads((copied / "layersift.json").read_text())
    for mask in ("1111", "1000"):
        (copied / "layersift.json").write_text(json.dumps(record | {"mask": mask}))
        with pytest.raises(ModelError, match="not of one training"):
            load_run(copied)
    selection = json.loads((copied / "selection.json").read_text())
    (copied / "selection.json").write_text(json.dumps(selection | {"mask": "1000", "selected_layers": [0]}))
    with pytest.raises(LayersiftError):
        load_run(copied)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_seen_before_they_are_packed(value, tmp_path, bert_directory):
    shutil.copytree(bert_directory, tmp_path / "bert")
    require_finite_files(tmp_path / "bert", "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    name = next(n for n in weights if "layer.1.output.dense.weight" in n)
    weights[name][0, 0] = value
    save_file(weights, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense\.weight"):
        require_finite_files(tmp_path / "bert", "bert")


@pytest.mark.parametrize("label", ["9" * 309, "9" * 5000, 10**400, "-" + "9" * 400, "a\ud800", 1e400])
def test_labels_that_no_number_and_no_text_can_hold_are_refused(label):
    rows = [{"text": f"w{i}", "label": label if i % 2 else "0"} for i in range(12)]
    with pytest.raises(DataError, match="row 2"):
        table_of(rows, "rows")


def test_long_numbers_that_floats_confuse_are_not_one_class():
    rows = [{"text": f"w{i}", "label": 10**17 + i % 2} for i in range(12)]
    assert class_counts(table_of(rows, "rows")) == {str(10**17): 6, str(10**17 + 1): 6}
    with pytest.raises(DataError, match="write one"):
        table_of([{**row, "label": str(row["label"])} for row in rows], "rows")


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_settings_hold_texts_that_paths_can(text, tmp_path):
    for made in (lambda: DataSettings(text), lambda: ModelSource(text), lambda: TrainSettings(activation_cache=text)):
        with pytest.raises(LayersiftError, match="NUL or half of a character"):
            made()


def test_settings_of_a_file_hold_texts_that_paths_can(tmp_path, call):
    for key in ("data", "output", "selection"):
        (tmp_path / "c.yaml").write_text(f'{key}: "a\\0b"\n')
        ended = call("train", "model", "--data", "x", "-o", "y", "--config", "c.yaml", cwd=tmp_path)
        assert ended.returncode == 2
        assert f"c.yaml: {key}" in ended.stderr


def test_what_controls_a_terminal_is_shown_and_not_obeyed():
    assert visible("a\x1b[31mb\rc\td\ne\x9b") == "a\\x1b[31mb\\x0dc\td\ne\\x9b"


def test_an_encoding_that_lacks_a_letter_ends_no_command(tmp_path, run):
    rows = [{"text": f"w{i} w{i % 7}", "label": i % 2} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-m", "layersift", "evaluate", str(run), "--data", "rows.jsonl"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(words, cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "\\xb1" in said.stdout


def test_a_file_that_unpacks_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("layersift.data.rows.MOST_UNPACKED", 1 << 20)
    row = json.dumps({"text": "w1 " * 1000}) + "\n"
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wt") as file:
        file.write(row * 3000)
    with pytest.raises(DataError, match="unpacks to more than"):
        read_rows(str(tmp_path / "bomb.jsonl.gz"))
    with gzip.open(tmp_path / "fine.jsonl.gz", "wt") as file:
        file.write(row * 9)
    assert len(read_rows(str(tmp_path / "fine.jsonl.gz"))) == 9


def test_aliases_that_grow_with_each_level_are_refused():
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    with pytest.raises(LayersiftError, match="aliases"):
        parse_yaml(f"a0: &a0 [x]\n{levels}", "a file")
    with pytest.raises(LayersiftError, match="aliases"):
        parse_yaml("a: &a [*a]", "a file")
    assert parse_yaml("a: &a [1, 2]\nb: *a", "a file") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("text", ["converging:0.99@0.000000000001", "converging:0.99@0.0009", "converging:0.99@0.6"])
def test_looks_of_a_strategy_are_bounded(text):
    with pytest.raises(LayersiftError, match=r"0\.001 to 0\.5"):
        parse_strategy(text)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ValueError("x" * 300 + " set trust_remote_code=True"), "--trust-remote-code"),
        (ImportError("x" * 300 + " run `pip install sentencepiece`"), "pip install sentencepiece"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "pip install tiktoken"),
    ],
)
def test_a_librarys_own_remedy_is_said_in_our_words(error, named):
    with pytest.raises(DataError, match=named), wrap_library_errors(DataError, "a file", "the caller's"):
        raise error


@pytest.mark.parametrize("data", [{}, {"a": ""}, ""])
def test_test_data_that_name_nothing_are_refused_before_anything_is_trained(data):
    with pytest.raises(LayersiftError, match=r"evaluate\.data is empty"):
        EvaluateSettings(data=data)


@pytest.mark.parametrize("settings", [{"epochs": 0.01}, {"epochs": 1, "method_options": {"tfinal": 5}}])
def test_adalora_of_one_step_is_refused(settings, tmp_path, bert_directory):
    with pytest.raises(LayersiftError, match="adalora"):
        classify(bert_directory).train(tmp_path / "run", TrainSettings(method="adalora", batch_size=4, **settings))
