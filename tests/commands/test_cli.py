"""The command line as its users meet it: a process with flags, output and an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cli import layersift
from layersift.records.selection import Selection


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences(n=24):
    rng = np.random.default_rng(2)
    return [
        {"text": " ".join(f"w{w}" for w in rng.integers(0, 40, rng.integers(2, 8))), "label": i % 2} for i in range(n)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "train.jsonl", sentences())


@pytest.fixture(scope="module")
def selected(tmp_path_factory, bert_directory, data):
    path = tmp_path_factory.mktemp("selected") / "selection.json"
    result = layersift("select", bert_directory, "--data", data, "-o", path)
    assert result.returncode == 0, result.stderr
    return path, result


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bert_directory, data, selected):
    path = tmp_path_factory.mktemp("trained") / "run"
    flags = ("--selection", selected[0], "--epochs", 2, "--learning-rate", "1e-2", "-o", path)
    result = layersift("train", bert_directory, "--data", data, *flags)
    assert result.returncode == 0, result.stderr
    return path, result


def test_help_is_quick_because_torch_waits():
    code = "import sys, layersift.__main__; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert "select" in layersift("--help").stdout


def test_select_writes_and_says_what_it_did(selected):
    path, result = selected
    selection = Selection.load(path)
    assert selection.mask in result.stdout
    assert "text = 'text', label = 'label'" in result.stdout
    assert selection.num_samples == 24
    assert selection.command.startswith("layersift select")
    assert "Traceback" not in result.stderr


def test_select_says_which_of_its_settings_are_defaults(selected, bert_directory, data):
    _, result = selected
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("by default: ")]
    assert "by default: cka, position mean, half of the layers, at most 128 samples; " in line
    assert (Path(__file__).parents[2] / line.split("; ")[1].split()[0]).is_file()
    given = ("--position", "first", "--ratio", 0.5, "--max-samples", 16)
    result = layersift("select", bert_directory, "--data", data, *given)
    assert "by default: cka; " in result.stdout
    for rule in (("--criterion", "fisher", *given[2:]), ("--compat", "paper")):
        assert "by default" not in layersift("select", bert_directory, "--data", data, *rule).stdout


def test_select_as_json_prints_the_record_alone(bert_directory, data):
    result = layersift("select", bert_directory, "--data", data, "--position", "first", "--json")
    values = json.loads(result.stdout)
    assert values["importance"][0] is None
    assert values["mask"].count("1") == 2
    assert result.stderr == ""


def test_undefined_layers_are_said_on_screen(bert_directory, data):
    result = layersift("select", bert_directory, "--data", data, "--position", "first")
    assert "undefined" in result.stdout
    assert "its input is constant over the sample" in result.stdout


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, bert_directory, data):
    result = layersift("select", bert_directory, "--data", data, "--dry-run", "-o", tmp_path / "s.json")
    assert "2 of 4" in result.stdout
    assert "bert.encoder.layer.{}" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_flags_win_over_the_config_file(tmp_path, bert_directory, data):
    (tmp_path / "c.yaml").write_text(f"data: {data}\ntop-n: 1\nseed: 5\n")
    result = layersift("select", bert_directory, "--config", tmp_path / "c.yaml", "--top-n", 3, "--json")
    values = json.loads(result.stdout)
    assert len(values["selected_layers"]) == 3
    assert values["seed"] == 5
    (tmp_path / "c.yaml").write_text("top_m: 1\n")
    result = layersift("select", bert_directory, "--data", data, "--config", tmp_path / "c.yaml")
    assert result.returncode == 2
    assert "unknown key 'top_m'; did you mean 'top_n'?" in result.stderr


def test_inspect_shows_blocks_and_what_a_selection_adapts(bert_directory, selected):
    result = layersift("inspect", bert_directory)
    assert "bert.encoder.layer.{}" in result.stdout
    assert "attention.self.query" in result.stdout
    result = layersift("inspect", bert_directory, "--selection", selected[0], "--rank", 2, "--json")
    values = json.loads(result.stdout)
    layers = Selection.load(selected[0]).selected_layers
    assert values["selection"]["modules"] == [
        f"bert.encoder.layer.{i}.attention.self.{name}" for i in layers for name in ("query", "value")
    ]
    assert values["selection"]["lora_parameters"] == 4 * 2 * 2 * 32


def test_train_and_evaluate(tmp_path, trained, data):
    path, result = trained
    assert "trained parameters" in result.stdout
    assert {"adapter_config.json", "adapter_model.safetensors", "selection.json", "layersift.json"} <= {
        p.name for p in path.iterdir()
    }
    result = layersift("evaluate", path, "--data", data, "-o", tmp_path / "e.json")
    assert result.returncode == 0, result.stderr
    values = json.loads((tmp_path / "e.json").read_text())
    assert set(values["metrics"]) == {"accuracy", "f1", "matthews"}
    assert np.mean(values["outcomes"]) == pytest.approx(values["metrics"]["accuracy"])
    assert f"accuracy     {values['metrics']['accuracy']:.4f}" in result.stdout


def test_quiet_says_nothing(tmp_path, bert_directory, data):
    result = layersift("select", bert_directory, "--data", data, "-q", "-o", tmp_path / "s.json")
    assert (result.stdout, result.stderr) == ("", "")
    assert (tmp_path / "s.json").exists()


def test_run_ends_in_a_table_and_carries_on(tmp_path, bert_directory, data):
    (tmp_path / "r.yaml").write_text(
        f"model: {bert_directory}\ndata: {data}\noutput: out\nvariants: [selected, all, random, base]\n"
        "train: {epochs: 1, learning_rate: 1e-2}\n"
    )
    result = layersift("run", "r.yaml", "--dry-run", cwd=tmp_path)
    assert "19 rows, 2 steps a variant" in result.stdout
    assert "2 of 4, by cka" in result.stdout
    result = layersift("run", "r.yaml", "--dry-run", "--set", "train.epochs=null", cwd=tmp_path)
    assert "19 rows, 40 steps a variant" in result.stdout, result.stderr  # twenty epochs at most
    assert not (tmp_path / "out").exists()
    result = layersift("run", "r.yaml", "--set", "train.epochs=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| layers | accuracy ↑ | from all | f1 ↑ | matthews ↑ | rate | trained parameters |" in table
    assert table.count("(1.00)") >= 6
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    variants = {r["variant"]: r for r in results["results"]}
    assert list(variants) == ["selected", "all", "random", "base"]
    assert variants["all"]["mask"] == "1111"
    draws = [draw["mask"] for draw in variants["random"]["draws"]]
    assert len(set(draws)) == 5
    assert variants["selected"]["mask"] not in draws
    assert variants["selected"]["adapter_bytes"] < variants["all"]["adapter_bytes"]
    assert variants["base"]["train_seconds"] is None
    assert (tmp_path / "out" / "importance.png").read_bytes().startswith(b"\x89PNG")

    cells = {json.loads(p.read_text())["cell"]["mask"]: p for p in (tmp_path / "out" / "cells").glob("*.json")}
    cells[draws[0]].unlink()
    kept = cells["1111"].stat().st_mtime_ns
    again = layersift("run", "r.yaml", "--set", "train.epochs=2", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "out" / "table.md").read_text() == table
    assert cells["1111"].stat().st_mtime_ns == kept
    other = layersift("run", "r.yaml", "--set", "train.epochs=1", cwd=tmp_path)
    assert other.returncode == 2
    assert "out holds trainings of another recipe (other train.epochs)" in other.stderr


BAD_SELECT = {
    "missing file": (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    "empty file": (["--data", "empty.jsonl"], "empty.jsonl: no rows"),
    "one class": (["--data", "one-class.jsonl"], "holds one class only"),
    "no such column": (["--data", "good.jsonl", "--text-column", "body"], "no column 'body' (--text-column)"),
    "two readings": (["--data", "two.jsonl"], "can be read in 2 ways"),
    "ratio 0": (["--data", "good.jsonl", "--ratio", "0"], "ratio 0.0 is out of range"),
    "ratio 2": (["--data", "good.jsonl", "--ratio", "2"], "ratio 2.0 is out of range"),
    "ratio and top-n": (
        ["--data", "good.jsonl", "--ratio", "0.5", "--top-n", "2"],
        "give one of ratio, top-n, budget-params, threshold and objective",
    ),
    "top-n 9": (["--data", "good.jsonl", "--top-n", "9"], "more than the 4 layers"),
    "few samples": (["--data", "few.jsonl"], "7 samples; at least 8 are needed"),
    "blank text": (["--data", "blank.jsonl"], "tokenises to nothing"),
    "position": (["--data", "good.jsonl", "--position", "middle"], "unknown position 'middle'"),
    "no response": (["--data", "good.jsonl", "--position", "response-mean"], "needs a task with responses"),
    "tower": (["--data", "good.jsonl", "--tower", "vision"], "the model has no vision tower; it has: encoder"),
    "output exists": (["--data", "good.jsonl", "-o", "few.jsonl"], "few.jsonl exists; select overwrites nothing"),
    "unknown flag": (["--data", "good.jsonl", "--rato", "0.5"], "No such option"),
    "no data": ([], "Missing option '--data'"),
}


@pytest.fixture(scope="module")
def bad_data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bad")
    rows = sentences()
    write(directory / "good.jsonl", rows)
    write(directory / "empty.jsonl", [])
    write(directory / "one-class.jsonl", [{**row, "label": 1} for row in rows])
    write(directory / "two.jsonl", [{**row, "prompt": "a", "response": "b"} for row in rows])
    write(directory / "few.jsonl", rows[:7])
    write(directory / "blank.jsonl", [*rows[:9], {"text": " ", "label": 0}])
    write(directory / "unseen.jsonl", [{**row, "label": row["label"] + 1} for row in rows])
    return directory


def check_refused(result, message, directory, before):
    assert result.returncode == 2, (result.stdout, result.stderr)
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert sorted(directory.rglob("*")) == before


@pytest.mark.parametrize("case", BAD_SELECT)
def test_bad_input_to_select_is_one_line_and_touches_nothing(case, call, bert_directory, bad_data):
    arguments, message = BAD_SELECT[case]
    before = sorted(bad_data.rglob("*"))
    output = [] if "-o" in arguments else ["-o", "new/s.json"]
    check_refused(call("select", bert_directory, *arguments, *output, cwd=bad_data), message, bad_data, before)


def test_bad_input_is_one_line_in_a_process_of_its_own(bert_directory, bad_data):
    before = sorted(bad_data.rglob("*"))
    words = [sys.executable, "-m", "layersift", "select", bert_directory, "--data", "two.jsonl"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=bad_data, check=False)
    check_refused(result, "can be read in 2 ways", bad_data, before)


def test_a_model_without_blocks(call, tmp_path, bad_data):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "resnet",
                "architectures": ["ResNetModel"],
                "embedding_size": 8,
                "hidden_sizes": [8],
                "depths": [1],
            }
        )
    )
    before = sorted(bad_data.rglob("*"))
    for command in (["inspect", tmp_path], ["select", tmp_path, "--data", "good.jsonl"]):
        check_refused(call(*command, cwd=bad_data), "has no transformer blocks", bad_data, before)


def test_bad_input_to_train_and_evaluate(call, bert_directory, bad_data, selected, trained, llama_directory):
    before = sorted(bad_data.rglob("*"))
    train = ["train", bert_directory, "--data", "good.jsonl"]
    cases = [
        ([*train, "--selection", "few.jsonl", "-o", "new"], "few.jsonl: not a selection file"),
        ([*train, "--selection", selected[0], "-o", "few.jsonl"], "few.jsonl exists; train overwrites nothing"),
        ([*train, "--selection", selected[0], "-o", "new", "--epochs", "0"], "epochs 0.0 is out of range"),
        ([*train, "--selection", selected[0], "-o", "new", "--target-modules", "q_proj"], "match nothing in layer"),
        (
            ["train", llama_directory, "--data", "good.jsonl", "--selection", selected[0], "-o", "new"],
            "selection is for bert.encoder.layer.{}",
        ),
        (["evaluate", trained[0], "--data", "unseen.jsonl"], "label 2 in column 'label' is not among the 2 classes"),
        (["evaluate", bad_data, "--data", "good.jsonl"], "expected the record of a finished `layersift train`"),
        (["evaluate", trained[0], "--data", "good.jsonl", "-o", "few.jsonl"], "evaluate overwrites nothing"),
    ]
    for arguments, message in cases:
        check_refused(call(*arguments, cwd=bad_data), message, bad_data, before)


def test_bad_recipes(call, tmp_path, bert_directory, bad_data):
    for text, message in (
        ("model: x\n", "'data' is missing"),
        ("model: x\ndata: y\noutput: z\nsede: 1\n", "unknown key 'sede'; did you mean 'seed'?"),
        (
            "model: x\ndata: y\noutput: z\ntrain: {epoch: 1}\n",
            "r.yaml, train: unknown key 'epoch'; did you mean 'epochs'?",
        ),
        ("model: x\ndata: y\noutput: z\ntrain: {epochs: many}\n", "r.yaml: train.epochs: expected float, got str"),
        ("model: x\ndata: y\noutput: z\nvariants: [selected, some]\n", "unknown variant 'some'"),
        ("model: [\n", "not YAML"),
        (f"model: {bert_directory}\ndata: {bad_data}/few.jsonl\noutput: out\n", "7 samples"),
        (
            f"model: {bert_directory}\ndata: {bad_data}/good.jsonl\noutput: out\nselect: {{ratio: 0.1}}\n",
            "less than one layer",
        ),
        (f"model: {bert_directory}\ndata: {bad_data}/blank.jsonl\noutput: out\n", "tokenises to nothing"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        before = sorted(tmp_path.rglob("*"))
        check_refused(call("run", "r.yaml", cwd=tmp_path), message, tmp_path, before)


def test_as_many_layers_as_a_budget_allows(tmp_path, call, bert_directory, data):
    layer = 2 * 2 * (32 + 32)  # query and value of one layer at rank 2
    flags = ("--budget-params", 2 * layer, "--rank", 2, "--target-modules", "query,value", "--json")
    result = call("select", bert_directory, "--data", data, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["selected_layers"] == sorted(found["ranking"][:2])
    assert found["rule"] == f"top 2 of 4 within {2 * layer} trained parameters"
    result = call("select", bert_directory, "--data", data, "--budget-params", "2Q", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "expected a number of parameters such as 2M" in result.stderr


def test_blocks_themselves_and_ranks_by_kind_from_flags(tmp_path, call, bert_directory, data, selected):
    shared = ("train", bert_directory, "--data", data, "--selection", selected[0], "--epochs", 0.3)
    result = call(*shared, "--method", "full", "-o", "full", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "full" / "blocks.safetensors").is_file()
    judged = call("evaluate", "full", "--data", data, "--json", cwd=tmp_path)
    assert 0 <= json.loads(judged.stdout)["metrics"]["accuracy"] <= 1
    ranks = ("--target-modules", "all-linear", "--rank", 8, "--rank-of", "attention=2", "--rank-of", "mlp=3")
    result = call(*shared, *ranks, "-o", "ranks", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    weights = load_file(tmp_path / "ranks" / "adapter_model.safetensors")
    for name, weight in weights.items():
        if "lora_A" in name and ".layer." in name:
            assert weight.shape[0] == (2 if ".attention." in name else 3), name
    wrong = call(*shared, "--rank-of", "atention=2", "-o", "wrong", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "'atention' fits none of the adapted modules" in wrong.stderr
    assert not (tmp_path / "wrong").exists()


def test_recipes_by_name_and_a_sweep(tmp_path, call, bert_directory, data):
    listed = call("recipes", cwd=tmp_path).stdout.split()
    assert "glue/roberta-base/sst2" in listed
    assert "000000111111" in call("recipes", "glue/roberta-base/sst2", cwd=tmp_path).stdout
    recipe = tmp_path / "r.yaml"
    train = "train: {epochs: 0.3, target_modules: 'query,value', rank: 2}"
    recipe.write_text(f"model: {bert_directory}\ndata: {data}\noutput: out\n{train}\n")
    result = call("sweep", recipe, "--sizes", "1,3,4", "-o", "swept", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = {r["variant"]: r for r in json.loads(result.stdout)}
    assert list(found) == ["top-1", "top-3", "all", "base"]
    ranking = json.loads((tmp_path / "swept" / "selection.json").read_text())["ranking"]
    assert [i for i, digit in enumerate(found["top-3"]["mask"]) if digit == "1"] == sorted(ranking[:3])
    assert (tmp_path / "swept" / "figure.png").read_bytes().startswith(b"\x89PNG")
    result = call("sweep", recipe, "--sizes", "1,9", "-o", "other", cwd=tmp_path)
    assert result.returncode == 2
    assert "expected numbers from 1 to 4" in result.stderr


def test_an_output_is_the_recipes_own_from_the_current_directory(tmp_path, call, bert_directory, data):
    recipe = tmp_path / "elsewhere" / "r.yaml"
    recipe.parent.mkdir()
    compared = "compare: {criteria: [last], seeds: 1, random: 1, strategies: []}"
    train = "train: {epochs: 2, target_modules: 'query,value', rank: 2}"
    recipe.write_text(f"model: {bert_directory}\ndata: {data}\noutput: cmp\nvariants: [all]\n{train}\n{compared}\n")
    for command in ("compare", "oracle", "sweep"):
        foretold = call(command, recipe, "--dry-run", "--json", cwd=tmp_path)
        assert foretold.returncode == 0, foretold.stderr
        assert json.loads(foretold.stdout)["output"] == "cmp"
    plan = json.loads(call("run", recipe, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert plan["output"] == "cmp"
    assert plan["variants"] == "all 1111"
    assert "of 4" not in plan["layers"]
    assert float(plan["learning rate"].removesuffix(" for all")) > 0
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}
    done = call("oracle", recipe, "--size", "3", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "cmp"}
    assert (tmp_path / "cmp" / "oracle.json").is_file()
    refused = call("run", recipe, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: cmp holds a comparison, and this is a run")
