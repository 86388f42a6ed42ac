"""`run` and `sweep` on the grid: an output belongs to its contents, one process works in it, and arms fail alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layersift.config.recipe import recipe_of
from layersift.errors import LayersiftError
from layersift.evaluation.load_run import load_run
from layersift.experiment.grid import open_grid
from layersift.experiment.run import run, sweep
from layersift.experiment.workers import threads_each
from layersift.records.selection import Selection


def rows(count, seed):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        words = [f"w{w}" for w in (rng.integers(0, 20, 5) if i % 2 else rng.integers(20, 40, 5))]
        made.append({"text": " ".join(words), "label": "yes" if i % 2 else "no"})
    return made


def given_in(directory, model, **sections):
    for name, seed in (("train", 0), ("test", 1)):
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(40, seed))))
    values = {
        "model": str(model),
        "data": str(directory / "train.jsonl"),
        "output": str(directory / "out"),
        "evaluate": str(directory / "test.jsonl"),
        "arms": ["selected", "all", "last", "untouched"],
        "select": {"criterion": "last"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
    }
    return recipe_of(values | sections, "r.yaml")


@pytest.fixture(scope="module")
def done(tmp_path_factory, bert_directory):
    directory = tmp_path_factory.mktemp("run")
    recipe = given_in(directory, bert_directory)
    return recipe, run(recipe, jobs=2)


def test_arms_of_the_same_layers_are_one_training_with_a_run_directory_each(done):
    recipe, found = done
    assert found.arms["selected"] is found.arms["last"]
    assert len({result.cell for result in found.arms.values()}) == 3
    for name, rule in (("selected", "top 2 of 4"), ("all", "arm: all")):
        record, loaded, _ = load_run(Path(recipe.output) / "arms" / name)
        kept = Selection.load(Path(recipe.output) / "arms" / name / "selection.json")
        assert (record.mask, kept.rule) == (found.arms[name].cell.mask, rule)
        assert kept.importance == found.selection.importance
        assert any("lora_A" in n for n, _ in loaded.model.named_parameters())
    assert (Path(recipe.output) / "arms" / "last" / "adapter_model.safetensors").is_file()
    assert not (Path(recipe.output) / "arms" / "untouched").exists()


def test_every_arm_has_its_interval_and_its_distance_from_all(done):
    _, found = done
    by_name = {row.choice.name: row for row in found.rows}
    assert by_name["all"].from_all is None
    assert by_name["selected"].from_all.over == "40 test samples"
    outcomes = [np.array(found.arms[name].outcomes) for name in ("selected", "all")]
    assert by_name["selected"].from_all.value == pytest.approx(float((outcomes[0] - outcomes[1]).mean()))
    values = {r["arm"]: r for r in found.results()}
    assert values["selected"]["score"]["low"] <= values["selected"]["metrics"]["accuracy"]
    assert "outcomes" not in values["selected"]
    json.dumps(found.to_json(), allow_nan=False)


def test_what_is_finished_is_not_done_again_and_arms_may_be_added(done):
    recipe, found = done
    before = {p: p.stat().st_mtime_ns for p in (Path(recipe.output) / "cells").iterdir()}
    again = run(replace(recipe, arms=("all", "selected", "first")))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert again.arms["all"] == found.arms["all"]
    assert again.arms["first"].cell.mask == "1100"


def test_data_that_changed_under_the_same_name_are_refused(done):
    recipe, _ = done
    for source, named in ((recipe.data.data, "contents.train"), (recipe.evaluate.data, "contents.test")):
        path = Path(source)
        before = path.read_text()
        path.write_text(before.replace("w1 ", "w2 ", 1))
        with pytest.raises(LayersiftError, match=rf"trainings of another recipe \(other {named}\); give another"):
            run(recipe)
        path.write_text(before)
    assert run(recipe).arms


def test_another_selection_or_another_model_is_refused(done, tmp_path, llama_directory):
    recipe, _ = done
    with pytest.raises(LayersiftError, match=r"other select\.top_n"):
        run(replace(recipe, select=replace(recipe.select, top_n=1)))
    with pytest.raises(LayersiftError, match=r"contents\.model"):
        run(replace(recipe, model=replace(recipe.model, name=str(llama_directory))))


def test_one_process_at_a_time_works_in_an_output(done):
    recipe, _ = done
    with open_grid(replace(recipe), with_selection=True), pytest.raises(LayersiftError, match="another process is at"):
        run(recipe)


def test_what_a_comparison_tunes_holds_no_rows_back_from_a_run(done, tmp_path, bert_directory):
    recipe, found = done
    tuned = replace(
        recipe,
        output=str(tmp_path / "tuned"),
        arms=("selected",),
        compare=replace(recipe.compare, learning_rates=[1e-3, 1e-2]),
    )
    assert run(tuned).arms["selected"].outcomes == found.arms["selected"].outcomes


def test_an_arm_that_fails_leaves_the_others_and_is_tried_again(call, tmp_path, bert_directory):
    recipe = given_in(tmp_path, bert_directory, arms=["all", "untouched"])

    failing = replace(recipe, train=replace(recipe.train, method="loftq"))
    found = run(failing)
    assert set(found.arms) == {"untouched"}
    assert "loftq" in found.failures["all"]
    assert next(row for row in found.rows if row.choice.name == "all").verdict == "failed"
    with pytest.raises(LayersiftError, match="every arm failed; all: "):
        run(replace(failing, arms=("all",)))


def test_a_sweep_is_a_run_with_arms_of_several_sizes(tmp_path, bert_directory):
    recipe = given_in(tmp_path, bert_directory)
    found = sweep(recipe, "1,4", jobs=2)
    assert {name: r.cell.mask for name, r in found.arms.items()} == {"top-1": "0001", "all": "1111", "untouched": ""}
    with pytest.raises(LayersiftError, match="expected numbers from 1 to 4"):
        sweep(recipe, "5")


@pytest.mark.parametrize(("named", "jobs", "wanted"), [("3", 2, 3), ("0", 10**6, 1), ("x", 10**6, 1), ("", 10**6, 1)])
def test_workers_take_as_many_threads_as_the_environment_says(monkeypatch, named, jobs, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    assert threads_each(jobs) == wanted
