"""Grids of trainings: shared cells, resumption after a kill, failures alone, and the tables at the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from layersift.compare import grid as grid_module
from layersift.compare import rates as rates_module
from layersift.compare.cells import Cell, CellResult, run_cell
from layersift.compare.contest import compare
from layersift.compare.grid import run_cells
from layersift.compare.oracle import oracle, subsets_of
from layersift.compare.rates import random_masks
from layersift.compare.recipe import read_recipe
from layersift.compare.standings import ALL, MATCHED, RANDOM, UNTOUCHED
from layersift.compare.tables import headings, oracle_rows, standing_rows
from layersift.errors import LayersiftError
from layersift.progress import Reporter


def rows(count, seed):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = [f"w{i}" for i in (rng.integers(0, 20, 5) if label else rng.integers(20, 40, 5))]
        made.append({"text": " ".join(words), "label": "yes" if label else "no"})
    return made


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    directory = tmp_path_factory.mktemp("task")
    for name, seed in (("train", 0), ("test", 1)):
        (directory / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows(64, seed)))
    return directory


def write_recipe(path, model, task, **sections):
    recipe = {
        "model": model,
        "data": str(task / "train.jsonl"),
        "output": "out",
        "select": {"max_samples": 32},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
        "evaluate": {"data": str(task / "test.jsonl")},
        "compare": {"criteria": ["last", "alternate", "cka", "bottom:cka"], "seeds": 2, "random": 2},
    }
    for section, values in sections.items():
        recipe[section] = {**recipe[section], **values}
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def recipe(task, bert_directory, tmp_path):
    path = write_recipe(tmp_path / "r.yaml", bert_directory, task)
    return read_recipe(path, [], str(tmp_path / "out"))


@pytest.fixture(scope="module")
def done(task, bert_directory, tmp_path_factory):
    directory = tmp_path_factory.mktemp("done")
    path = write_recipe(directory / "r.yaml", bert_directory, task)
    given = read_recipe(path, [], str(directory / "out"))
    return given, compare(given, jobs=2)


def test_every_choice_of_layers_has_its_row_and_shares_its_cells(done):
    given, found = done
    names = [s.entry.name for s in found.standings]
    assert names == ["last", "alternate", "cka", "bottom:cka", RANDOM, ALL, MATCHED, UNTOUCHED]
    cells = {cell.name for s in found.standings for cell in s.entry.cells(found.seeds)}
    assert sorted(p.stem for p in (Path(given.output) / "cells").glob("*.json")) == sorted(cells)
    assert len(cells) < sum(len(s.entry.cells(found.seeds)) for s in found.standings) or len(cells) == 18
    by_name = {s.entry.name: s for s in found.standings}
    assert by_name["last"].entry.masks == ("0011",)
    assert by_name["alternate"].entry.masks == ("0101",)
    top, bottom = by_name["cka"].entry.masks[0], by_name["bottom:cka"].entry.masks[0]
    assert [int(a) + int(b) for a, b in zip(top, bottom, strict=True)] == [1] * 4
    assert by_name[ALL].from_all is None
    assert by_name[RANDOM].from_random is None
    assert by_name["last"].from_all.over == "2 seeds"
    assert by_name[MATCHED].parameters == pytest.approx(by_name["last"].parameters, rel=0.01)
    assert by_name[ALL].parameters > 1.8 * by_name["last"].parameters
    assert by_name[UNTOUCHED].parameters is None


def test_a_row_is_made_of_its_cells(done):
    given, found = done
    for standing in found.standings:
        files = [Path(given.output) / "cells" / f"{c.name}.json" for c in standing.entry.cells(found.seeds)]
        scores = [json.loads(f.read_text())["metrics"]["accuracy"] for f in files]
        assert standing.score.value == pytest.approx(np.mean(scores))


def test_cells_differ_in_layers_only(done, task, bert_directory, tmp_path):
    given, _ = done
    cell = Cell("0011", 0, "lora", 0.01, 8, 16)
    kept = CellResult.load(Path(given.output) / "cells" / f"{cell.name}.json")
    again = run_cell(given, cell, tmp_path)
    assert again.outcomes == kept.outcomes
    assert again.train_loss == pytest.approx(kept.train_loss, rel=1e-5)
    assert not list(tmp_path.glob("*.run*"))


def test_finished_cells_are_not_trained_again(done):
    given, found = done
    before = {p: p.stat().st_mtime_ns for p in (Path(given.output) / "cells").iterdir()}
    more = replace(given, compare=replace(given.compare, criteria=["last", "first"]))
    again = compare(more)
    after = {p: p.stat().st_mtime_ns for p in (Path(given.output) / "cells").iterdir()}
    assert {p: t for p, t in after.items() if p in before} == before
    old = {s.entry.name: s.score for s in found.standings}
    new = {s.entry.name: s.score for s in again.standings}
    assert new["last"] == old["last"]
    assert "first" in new
    with pytest.raises(LayersiftError, match="trainings of another recipe"):
        compare(replace(given, train=replace(given.train, epochs=2)))


def comparable(path):
    """What a comparison found, without what depends on the clock."""
    found = json.loads(path.read_text())
    return [
        {k: v for k, v in s.items() if k not in ("seconds", "memory")} | {"entry": s["entry"] | {"scoring_seconds": 0}}
        for s in found["standings"]
    ]


def test_killing_it_at_a_random_moment_and_starting_again_ends_in_the_same_table(done, task, bert_directory, tmp_path):
    given, _ = done
    path = write_recipe(tmp_path / "r.yaml", bert_directory, task)
    command = [sys.executable, "-m", "layersift", "compare", str(path), "-o", str(tmp_path / "out"), "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    cells = tmp_path / "out" / "cells"
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    kills = 0
    for at in (1, 4):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while process.poll() is None and len(list(cells.glob("*.json"))) < at and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 1.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    before = {p: p.stat().st_mtime_ns for p in cells.glob("*.json")}
    assert kills, f"seed {seed}"
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    compare(given)
    subprocess.run(
        [sys.executable, "-m", "layersift", "compare", str(path), "-o", given.output, "--quiet"],
        env=environment,
        check=True,
        timeout=300,
    )
    assert comparable(tmp_path / "out" / "compare.json") == comparable(Path(given.output) / "compare.json"), (
        f"seed {seed}"
    )


def test_cells_fail_alone(recipe):
    with_loftq = replace(recipe, compare=replace(recipe.compare, methods=["lora", "loftq"], criteria=["last"], seeds=1))
    said = []

    class Listening(Reporter):
        def say(self, text):
            said.append(text)

    found = compare(with_loftq, reporter=Listening())
    scores = {(s.entry.method, s.entry.name): s for s in found.standings}
    assert scores["lora", "last"].score is not None
    assert scores["loftq", "last"].score is None
    assert "loftq" in scores["loftq", "last"].failures[0]
    assert scores["loftq", "last"].verdict == "failed"
    assert any(text.startswith("failed: loftq") for text in said)
    rows_ = standing_rows(found, "loftq", 2)
    assert "failed" in next(r for r in rows_ if r[0] == "last")


def test_a_criterion_without_scores_is_left_out_and_the_rest_goes_on(recipe, tmp_path):
    rule = tmp_path / "rules.py"
    rule.write_text("def none(subject):\n    return [None] * subject.num_layers\n")
    some = replace(recipe.compare, criteria=["pilot", f"{rule}:none", "last"], seeds=1, random=1)
    found = compare(replace(recipe, compare=some))
    assert [s.entry.name for s in found.standings][:2] == ["last", RANDOM]
    assert "steps are too few" in found.left_out["pilot"]
    assert found.left_out["rules:none"].startswith("no layer has a score")
    with pytest.raises(LayersiftError, match="not one criterion has scores here"):
        compare(replace(recipe, compare=replace(some, criteria=["pilot"])))


def deadly(connection, recipe, directory, threads):
    """A worker that the system kills in the middle of one cell."""
    while True:
        cell = connection.recv()
        if cell.seed == 1:
            os._exit(9)
        CellResult(cell, {"accuracy": 0.5}, 2, (0.0, 1.0)).save(grid_module.result_path(directory, cell))
        connection.send(None)


def test_a_worker_that_dies_takes_one_cell_with_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(grid_module, "_work", deadly)
    cells = [Cell("0011", seed) for seed in range(4)]
    results, failures = run_cells(recipe, cells, tmp_path / "cells", 2, Reporter(), "x")
    assert set(results) == {cells[0], cells[2], cells[3]}
    assert failures == {cells[1]: "its process ended with exit code 9"}


def test_learning_rates_are_chosen_on_held_back_rows_with_random_layers(recipe, monkeypatch):
    seen = []

    def fake(given, cells, directory, jobs, reporter, label):
        seen.extend(cells)
        best = {2: 0.001, 4: 0.01}
        score = lambda c: 1 - abs(np.log10(c.learning_rate / best[c.mask.count("1")]))  # noqa: E731
        return {c: CellResult(c, {"accuracy": float(score(c))}, 1, (1.0,)) for c in cells}, {}

    monkeypatch.setattr(rates_module, "run_cells", fake)
    tuned = replace(recipe, compare=replace(recipe.compare, learning_rates=[1e-4, 1e-3, 1e-2]))
    rates = rates_module.choose_rates(tuned, 4, [2], ["lora"], 1, "classification", Reporter())
    assert rates == {("lora", 2): 1e-3, ("lora", 4): 1e-2}
    assert {c.judged for c in seen} == {"validation"}
    assert {c.mask for c in seen} == {random_masks(4, 2, 1, 0)[0], "1111"}


def test_rows_to_choose_rates_by_are_neither_trained_on_nor_tested_on(recipe):
    from layersift.compare.cells import split_tables

    tuned = replace(recipe, compare=replace(recipe.compare, learning_rates=[1e-3, 1e-2]))
    test, validation = split_tables(tuned)
    held_back = [json.dumps(r) for r in validation.test[""].rows]
    assert len(held_back) == 13
    assert [json.dumps(r) for r in validation.train.rows] == [json.dumps(r) for r in test.train.rows]
    assert len(test.train.rows) == 51
    assert split_tables(recipe)[1] is None
    assert len(split_tables(recipe)[0].train.rows) == 64


def test_random_layers_are_different_draws():
    masks = random_masks(6, 3, 5, 0)
    assert len(set(masks)) == 5
    assert all(m.count("1") == 3 for m in masks)
    assert masks[:1] == random_masks(6, 3, 1, 0)
    assert len(random_masks(4, 1, 9, 0)) == 4


def test_retention_is_the_loss_on_other_text(task, llama_directory, tmp_path):
    questions = [{"prompt": f"w{i % 20} w{i % 7}", "response": f"w{i % 5} w{i % 3}"} for i in range(24)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    path = write_recipe(
        tmp_path / "r.yaml",
        llama_directory,
        task,
        compare={"criteria": ["last"], "seeds": 1, "random": 1, "retention": str(task / "test.jsonl")},
    )
    given = read_recipe(
        path, [f"data.data={tmp_path}/q.jsonl", f"evaluate.data={tmp_path}/q.jsonl"], str(tmp_path / "out")
    )
    found = {s.entry.name: s for s in compare(given).standings}
    cells = [CellResult.load(p) for p in (tmp_path / "out" / "cells").glob("*.json")]
    untouched = next(c for c in cells if not c.cell.mask)
    last = next(c for c in cells if c.cell.mask == "0011")
    assert untouched.retention_loss > 0
    assert found["last"].retention == pytest.approx(last.retention_loss - untouched.retention_loss)
    assert found[UNTOUCHED].retention is None
    (_, table), *_ = headings(compare(given))
    assert table[0][-1] == "other text"
    assert found["last"].from_all.over == "24 test samples"


def test_oracle_trains_every_subset_and_places_the_criteria(done):
    given, _ = done
    found = oracle(given, size=2, jobs=2)
    assert found.total == len(found.subsets) == 6
    means = [s.mean for s in found.subsets]
    assert means == sorted(means, reverse=True)
    by_mask = {s.mask: s.mean for s in found.subsets}
    for p in found.placed:
        assert p.score == pytest.approx(by_mask[p.mask])
        assert p.lost == pytest.approx(means[0] - p.score)
        beaten = [(v < p.score) + 0.5 * (v == p.score) for m, v in by_mask.items() if m != p.mask]
        assert p.percentile == pytest.approx(100 * np.mean(beaten))
        assert p.place == 1 + sum(v > p.score for v in by_mask.values())
    assert [r[0] for r in oracle_rows(found)][1:] == [p.criterion for p in found.placed]


def test_subsets():
    assert subsets_of(4, 2, None, 0) == ["1100", "1010", "1001", "0110", "0101", "0011"]
    drawn = subsets_of(30, 15, 20, 0)
    assert len(set(drawn)) == 20
    assert drawn == subsets_of(30, 15, 20, 0)
    with pytest.raises(LayersiftError, match="155,117,520 subsets of 15 of 30 layers; give --sample"):
        subsets_of(30, 15, None, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--criteria", "cka,nonsense"], "unknown criterion 'nonsense'"),
        (["--sizes", "4"], "there are 4 layers"),
        (["--sizes", "0"], "compare.sizes [0]"),
        (["--seeds", "0"], "compare.seeds 0 is out of range"),
        (["--methods", "lorra"], "unknown method 'lorra'"),
        (["--jobs", "0"], "jobs 0 is out of range"),
        (["--set", "compare.probe_share=2"], "compare.probe_share 2"),
        (["--set", "compare.learning_rates=[fast]"], "expected numbers"),
    ],
)
def test_bad_grids_get_one_line(call, task, bert_directory, tmp_path, flags, message):
    write_recipe(tmp_path / "r.yaml", bert_directory, task)
    refused = call("compare", "r.yaml", "-o", "o", *flags, cwd=tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_an_output_that_holds_something_else_is_left_alone(call, task, bert_directory, tmp_path):
    write_recipe(tmp_path / "r.yaml", bert_directory, task)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("x")
    refused = call("oracle", "r.yaml", "-o", "o", cwd=tmp_path)
    assert (refused.returncode, "holds no grid of trainings" in refused.stderr) == (2, True)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["mine.txt"]
