"""Grids of trainings: shared cells, resumption after a kill, failures alone, and the tables at the end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from dying import deadly, stuck_work
from layersift.config.recipe import read_recipe
from layersift.config.train import TrainSettings
from layersift.config.variants import BASE
from layersift.errors import LayersiftError
from layersift.evaluation.metrics import Majority
from layersift.experiment import grid
from layersift.experiment import rates as rates_module
from layersift.experiment.cell import Job, result_path, run_cell
from layersift.experiment.choices import ALL, KINDS, MATCHED, RANDOM, choices_of, draw_notices, with_rates
from layersift.experiment.compare import compare
from layersift.experiment.costs import least_changed
from layersift.experiment.grid import open_grid, run_cells
from layersift.experiment.judge import Trained, judge
from layersift.experiment.oracle import Oracle, oracle, place, rank_subsets, subsets_of
from layersift.experiment.prepare import Prepared, checked, scoring_of
from layersift.progress import Reporter
from layersift.records.runs import Result
from layersift.report.tables import (
    MAJORITY,
    Group,
    caption,
    groups_of,
    headings,
    judgement_rows,
    oracle_caption,
    oracle_rows,
)
from layersift.select.layers import draw_masks
from variants import cell_of, choice_of


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
        "compare": {"criteria": ["last", "alternate", "cka", "bottom:cka"], "seeds": 2, "random": 2, "strategies": []},
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
    equal_length = [s for s in found.rows if s.choice.budget is None]
    names = [s.choice.name for s in equal_length]
    assert names == ["last", "alternate", "cka", "bottom:cka", RANDOM, ALL, MATCHED, BASE, *KINDS.values()]
    cells = {cell.file_name(given.train) for s in found.rows for cell in s.choice.cells(found.seeds)}
    assert cells <= {p.stem for p in (Path(given.output) / "cells").glob("*.json")}
    assert len(cells) < sum(len(s.choice.cells(found.seeds)) for s in found.rows) or len(cells) == 22
    by_name = {s.choice.name: s for s in equal_length}
    assert by_name["last"].choice.masks == ("0011",)
    assert by_name["alternate"].choice.masks == ("0101",)
    top, bottom = by_name["cka"].choice.masks[0], by_name["bottom:cka"].choice.masks[0]
    assert [int(a) + int(b) for a, b in zip(top, bottom, strict=True)] == [1] * 4
    assert by_name[ALL].from_all is None
    assert by_name[RANDOM].from_random is None
    assert by_name["last"].from_all.over == "2 seeds and 64 test samples"
    assert by_name[MATCHED].parameters == pytest.approx(by_name["last"].parameters, rel=0.01)
    for kind in KINDS.values():
        alone = by_name[kind]
        assert alone.choice.masks == ("1111",)
        assert alone.choice.train.alpha == 2 * alone.choice.train.rank  # as the others' updates are scaled
        rank_one = (alone.parameters - 66) / alone.choice.train.rank  # the head has 66
        assert abs(alone.parameters - by_name["last"].parameters) <= rank_one / 2
    assert by_name[ALL].parameters > 1.8 * by_name["last"].parameters
    assert by_name[BASE].parameters is None


def test_rows_of_equal_cost_are_all_layers_and_the_last_ones_for_as_long_as_each_may(done):
    _, found = done
    equal = {s.choice.name: s for s in found.rows if s.choice.budget is None}
    own = equal["last"].choice.flops
    assert 0.4 < own < 0.8
    assert equal[ALL].choice.flops == 1.0
    assert equal[RANDOM].choice.flops > own
    assert equal[BASE].choice.flops is None
    groups = [g for g in groups_of(found) if g.budget is not None]
    assert [g.budget for g in groups] == [own, 1.0]
    by = {(s.choice.name, s.choice.budget): s for s in found.rows if s.choice.budget is not None}
    assert set(by) == {(name, budget) for name in (ALL, "last") for budget in (own, 1.0)}
    assert by["last", own].scores == equal["last"].scores  # its own cost: the same training
    assert by[ALL, 1.0].scores == equal[ALL].scores
    short, long = by[ALL, own], by["last", 1.0]
    steps = 8  # of an epoch of eight
    assert short.choice.train.epochs * steps == int(own * steps)
    # From the second epoch on what the frozen blocks give is kept, and a step takes less.
    assert int(steps / own) < long.choice.train.epochs * steps < 2 * int(steps / own)
    for row in by.values():
        assert row.choice.flops <= row.choice.budget * (1 + 1e-9)
        assert row.choice.flops > row.choice.budget - 1.01 / steps
    assert short.from_all is None
    assert by["last", own].from_all.value == pytest.approx(by["last", own].score.value - short.score.value)
    (title, table) = headings(found)[1]
    assert title.startswith(f"2 of 4 layers, lora: each trained for {own:.2f} of the FLOPs that all layers take")
    assert "four times of five it sees a difference from all of" in title
    assert table[0][table[0].index("FLOPs") + 1] == "epochs"


def test_a_training_is_changed_no_more_than_memory_asks_for():
    settings = TrainSettings(batch_size=12, gradient_accumulation=2)

    def taken(one):
        return one.batch_size * (1 if one.gradient_checkpointing else 10) + 5

    def within(most):
        found = least_changed(settings, lambda one: taken(one) <= most)
        assert found.batch_size * found.gradient_accumulation == 24
        return found.batch_size, found.gradient_checkpointing

    assert within(125) == (12, False)
    assert within(124) == (6, False)
    assert within(35) == (3, False)  # three cannot be halved
    assert within(34) == (12, True)
    assert within(16) == (6, True)
    assert within(1) == (3, True)  # as little as can be


@pytest.mark.slow
def test_strategies_are_rows_beside_all_layers(no_kinds, recipe):
    settings = replace(recipe.compare, criteria=["last"], seeds=1, random=1, strategies=["freezing", "static"])
    found = compare(replace(recipe, compare=replace(settings, budgets=[0.7])))
    freezing = {s.choice.budget: s for s in found.rows if s.choice.name == "freezing"}
    assert set(freezing) == {None, 0.7}
    assert freezing[None].choice.masks == ("1111",)
    assert 0.6 < freezing[None].choice.flops < 0.95
    files = {p.name for p in (Path(recipe.output) / "cells").glob("*freezing*")}
    assert "lora-r8-lr0.01-s0-test-1111-freezing.json" in files
    assert Result.load(next((Path(recipe.output) / "cells").glob("*freezing.json"))).cell.train.strategy == "freezing"
    assert not [s for s in found.rows if s.choice.name == "static"]


@pytest.mark.slow
def test_dropping_is_tried_on_choices_that_reach_below_frozen_layers(no_kinds, recipe):
    settings = replace(
        recipe.compare, criteria=["last", "first"], seeds=1, random=1, strategies=["skipping:0.5"], budgets=[0.7]
    )
    found = compare(replace(recipe, compare=settings))
    rows = {s.choice.name: s.choice for s in found.rows if s.choice.budget is None}
    assert {name for name in rows if "skipping" in name} == {"first, skipping:0.5"}
    assert rows["first, skipping:0.5"].masks == rows["first"].masks == ("1100",)
    # All blocks without adapters stand above the first adapted one, and half of their backward passes are left out.
    saved = rows["first"].flops - rows["first, skipping:0.5"].flops
    assert 0.05 < saved < rows["first"].flops / 4
    assert not [s for s in found.rows if s.choice.budget is not None and "skipping" in s.choice.name]


def test_random_draws_are_no_other_rows_layers(done):
    _, found = done
    others = {m for s in found.rows if s.choice.name != RANDOM for m in s.choice.masks}
    draws = next(s.choice.masks for s in found.rows if s.choice.name == RANDOM)
    assert others.isdisjoint(draws)
    assert len(draws) == min(2, 6 - len([m for m in others if m.count("1") == 2]))


def test_rows_of_the_same_layers_are_one_training_and_are_not_compared_twice(recipe):
    cells = {mask: cell_of(mask, learning_rate=1e-3) for mask in ("0011", "1111")}
    results = {
        cells["0011"]: Result(cells["0011"], {"accuracy": 0.5}, 4, (1.0, 0.0) * 2),
        cells["1111"]: Result(cells["1111"], {"accuracy": 1.0}, 4, (1.0,) * 4),
    }
    choices = [choice_of(name, 2, ["0011"]) for name in ("cka", "last")]
    choices += [choice_of(ALL, 2, ["1111"]), choice_of(RANDOM, 2, ["0011"])]
    cka, last, every, chance = judge(choices, Trained((0,), results, {}))
    assert (last.same_as, every.same_as) == ("", "")
    assert last.from_all is not None
    assert last.from_random is None  # the same layers, too
    for row in (cka, chance):
        assert (row.same_as, row.from_all, row.from_random) == ("last", None, None)
        assert row.verdict == "same layers as last"
        assert row.score == last.score
    (said,) = draw_notices(choices, 1)
    assert said == "random 2 layers: 1 of 1 draws are another row's layers"


def test_a_row_is_made_of_its_cells(done):
    given, found = done
    for row in found.rows:
        files = [
            Path(given.output) / "cells" / f"{c.file_name(given.train)}.json" for c in row.choice.cells(found.seeds)
        ]
        scores = [json.loads(f.read_text())["metrics"]["accuracy"] for f in files]
        assert row.score.value == pytest.approx(np.mean(scores))


def test_cells_differ_in_layers_only(done, task, bert_directory, tmp_path):
    given, _ = done
    cell = cell_of("0011", train=given.train, learning_rate=0.01)
    kept = Result.load(Path(given.output) / "cells" / f"{cell.file_name(given.train)}.json")
    again = run_cell(given, Job(cell), tmp_path, Reporter())
    assert again.outcomes == kept.outcomes
    assert again.train_loss == pytest.approx(kept.train_loss, rel=1e-5)
    assert not list(tmp_path.rglob("*.run*"))


def test_finished_cells_are_not_trained_again(done):
    given, found = done
    before = {p: p.stat().st_mtime_ns for p in (Path(given.output) / "cells").iterdir()}
    more = replace(given, compare=replace(given.compare, criteria=["last", "first"]))
    again = compare(more)
    after = {p: p.stat().st_mtime_ns for p in (Path(given.output) / "cells").iterdir()}
    assert {p: t for p, t in after.items() if p in before} == before
    old = {s.choice.name: s.score for s in found.rows if s.choice.budget is None}
    new = {s.choice.name: s.score for s in again.rows if s.choice.budget is None}
    assert new["last"] == old["last"]
    assert "first" in new


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: replace(r, train=replace(r.train, epochs=2)), "train.epochs"),
        (lambda r: replace(r, train=replace(r.train, method_options={"use_rslora": True})), "method_options"),
        (lambda r: replace(r, train=replace(r.train, ranks={"attention": 4})), "train.ranks"),
        (lambda r: replace(r, train=replace(r.train, prefix_dropout=True)), "train.prefix_dropout"),
        (
            lambda r: replace(r, evaluate=replace(r.evaluate, data={"a": r.data.data, "b": r.data.data})),
            "evaluate.data",
        ),
        (lambda r: replace(r, select=replace(r.select, tower="encoder")), "tower"),
    ],
)
def test_cells_of_another_recipe_are_not_taken_for_its_own(done, change, named):
    given, _ = done
    with pytest.raises(LayersiftError, match=rf"trainings of another recipe \(other .*{named}"):
        compare(change(given))


def test_settings_that_an_older_version_did_not_know_had_their_defaults(done):
    given, _ = done
    path = Path(given.output) / "grid.json"
    kept = path.read_text()
    older = json.loads(kept)
    del older["train"]["prefix_dropout"], older["train"]["ranks"]
    path.write_text(json.dumps(older))
    try:
        with grid.open_grid(replace(given, train=replace(given.train, prefix_dropout=True))):
            pass
        with pytest.raises(LayersiftError, match="prefix_dropout"):
            compare(given)
    finally:
        path.write_text(kept)


def test_cells_of_other_data_or_another_model_are_not_taken_for_its_own(recipe, task, bert_directory, tmp_path):
    for name in ("train", "test"):
        shutil.copy(task / f"{name}.jsonl", tmp_path)
    shutil.copytree(bert_directory, tmp_path / "model")
    moved = replace(
        recipe,
        model=replace(recipe.model, name=str(tmp_path / "model")),
        data=replace(recipe.data, data=str(tmp_path / "train.jsonl")),
        evaluate=replace(recipe.evaluate, data=str(tmp_path / "test.jsonl")),
    )
    with grid.open_grid(moved):
        pass
    for name, changed in (("train.jsonl", r"contents\.train"), ("test.jsonl", r"contents\.test")):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(before.replace("w1 ", "w2 "))
        with pytest.raises(LayersiftError, match=changed), grid.open_grid(moved):
            pass
        (tmp_path / name).write_text(before)
    with grid.open_grid(moved):
        pass
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(n for n, w in weights.items() if w.ndim == 2)
    save_file({**weights, name: weights[name] + 1}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(LayersiftError, match=r"contents\.model"), grid.open_grid(moved):
        pass


@pytest.mark.slow
def test_one_process_at_a_time_works_in_an_output(done):
    given, _ = done
    with grid.open_grid(given), pytest.raises(LayersiftError, match="another process is at work in it"):
        compare(given)
    assert compare(given).rows


def test_an_own_rule_that_was_edited_is_asked_again(recipe, tmp_path):
    rule = tmp_path / "rules.py"
    rule.write_text("def mine(context):\n    return [4, 3, 2, 1]\n")
    given = replace(recipe, compare=replace(recipe.compare, criteria=[f"{rule}:mine"], seeds=1, random=1))
    chosen = []
    for order in ("[4, 3, 2, 1]", "[1, 2, 3, 4]"):
        rule.write_text(f"def mine(context):\n    return {order}\n")
        with grid.open_grid(given) as output:
            chosen.append(scoring_of(given, checked(given, Reporter())[2], [2], output, Reporter()).scored[0].layers)
    assert chosen == [(0, 1), (2, 3)]


def judged_again(done, change):
    """The comparison's rows, were the cells' results ``change(results)`` and some of them failed."""
    given, found = done
    choices = [row.choice for row in found.rows]
    cells = {cell for choice in choices for cell in choice.cells(found.seeds)}
    results = {cell: Result.load(result_path(Path(given.output), cell, given.train)) for cell in cells}
    failures = change(results)
    rows = judge(choices, Trained(found.seeds, results, failures))
    return {row.choice.name: row for row in rows}, replace(found, rows=rows)


def dropping(*lost):
    def change(results):
        gone = [c for c in results if any(condition(c) for condition in lost)]
        for cell in gone:
            del results[cell]
        return dict.fromkeys(gone, "out of memory")

    return change


def test_one_draw_that_fails_leaves_the_others(done):
    _, found = done
    draws = next(s.choice.masks for s in found.rows if s.choice.name == RANDOM)
    taken = {m for s in found.rows if s.choice.name != RANDOM for m in s.choice.masks}
    lost = next((m for m in draws if m not in taken), draws[0])
    standings, comparison = judged_again(done, dropping(lambda c: c.mask == lost))
    assert standings[RANDOM].short == "1 of 2 draws"
    assert standings[RANDOM].score is not None
    other = standings["alternate"]
    assert other.from_random is not None
    assert "one random choice" in other.verdict
    assert any(", 1 of 2 draws" in row[2] for row in judgement_rows(comparison, Group("lora", 2)))


def test_a_reference_that_fails_is_said_and_not_passed_over(done):
    standings, _ = judged_again(done, dropping(lambda c: c.mask == "1111" and c.train.rank == 8))
    assert standings[ALL].verdict == "failed"
    assert "not compared with all, which failed" in standings["last"].verdict


def test_a_seed_that_fails_or_has_no_score_shows_in_its_row(done):
    standings, comparison = judged_again(done, dropping(lambda c: c.mask == "0011" and c.seed == 1))
    assert standings["last"].short == "1 of 2 seeds"
    assert standings["last"].score.half_width is None
    assert next(row[2] for row in judgement_rows(comparison, Group("lora", 2)) if row[0] == "last").endswith(
        ", 1 of 2 seeds"
    )
    assert "over 2 seeds" in caption(comparison)

    def collapse(results):
        for cell, result in list(results.items()):
            if cell.mask == "0011" and cell.seed == 0:
                results[cell] = replace(result, metrics=dict.fromkeys(result.metrics))
        return {}

    standings, _ = judged_again(done, collapse)
    assert standings["last"].short == "1 of 2 seeds"
    assert standings["last"].failures == ("accuracy is undefined with seed 0",)


def test_a_training_that_says_one_class_shows_in_its_row_and_not_in_the_mean_alone(done):
    def collapse(results):
        for cell, result in list(results.items()):
            if cell.mask in ("0011", ""):
                score = bar + (0.1 if cell.seed == 1 else 0)
                results[cell] = replace(result, metrics=result.metrics | {"accuracy": score})
        return {}

    _, found = done
    bar = found.majority.accuracy[""]
    _, comparison = judged_again(done, collapse)

    def told(of):
        header, *rows = judgement_rows(of, Group("lora", 2))
        return {row[0]: row[header.index(MAJORITY)] if MAJORITY in header else "" for row in rows}

    assert (told(comparison)["last"], told(comparison)["base"]) == ("1 of 2", "-")
    _, comparison = judged_again(done, lambda results: {})
    low = {row.choice.name for row in comparison.rows if min(of[0] for of in row.scores.values()) <= bar}
    assert {name for name, said in told(comparison).items() if "of" in said} == low - {"base"}
    assert set(told(replace(comparison, majority=None)).values()) == {""}


def test_the_matched_rank_keeps_the_scale_and_is_left_out_where_there_is_no_rank(recipe):
    odd = replace(recipe, train=replace(recipe.train, rank=10, alpha=16))
    scoring = SimpleNamespace(stack=SimpleNamespace(num_layers=4), scored=())
    costs = SimpleNamespace(why_not=lambda method: "not here")
    choices = choices_of(odd, scoring, [1], ["lora", "vera", "full"], costs)
    matched = {e.train.method: e for e in choices if e.name == MATCHED}
    assert set(matched) == {"lora"}
    assert matched["lora"].train.rank == 2
    assert matched["lora"].train.alpha / matched["lora"].train.rank == pytest.approx(1.6)


@pytest.mark.slow
def test_cells_fail_alone(no_kinds, recipe):
    with_loftq = replace(recipe, compare=replace(recipe.compare, methods=["lora", "loftq"], criteria=["last"], seeds=1))
    said = []

    class Listening(Reporter):
        def say(self, text):
            said.append(text)

    found = compare(with_loftq, reporter=Listening())
    scores = {(s.choice.train.method, s.choice.name): s for s in found.rows}
    assert scores["lora", "last"].score is not None
    assert scores["loftq", "last"].score is None
    assert "loftq" in scores["loftq", "last"].failures[0]
    assert scores["loftq", "last"].verdict == "failed"
    assert any(text.startswith("failed: ") and "loftq" in text for text in said)
    rows_ = judgement_rows(found, Group("loftq", 2))
    assert "failed" in next(r for r in rows_ if r[0] == "last")


def test_a_criterion_without_scores_is_left_out_and_the_rest_goes_on(no_kinds, recipe, tmp_path):
    rule = tmp_path / "rules.py"
    rule.write_text("def none(context):\n    return [None] * context.num_layers\n")
    some = replace(recipe.compare, criteria=["pilot", f"{rule}:none", "last"], seeds=1, random=1)
    found = compare(replace(recipe, compare=some))
    assert [s.choice.name for s in found.rows][:2] == ["last", RANDOM]
    assert "steps are too few" in found.scoring.left_out["pilot"]
    assert found.scoring.left_out["rules:none"].startswith("no layer has a score")
    with pytest.raises(LayersiftError, match="not one criterion has scores here"):
        compare(replace(recipe, compare=replace(some, criteria=["pilot"])))


def test_a_worker_that_dies_takes_one_cell_with_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_work", deadly)
    cells = [cell_of("0011", seed) for seed in range(4)]
    results, failures = run_cells(recipe, list(map(Job, cells)), tmp_path, 2, Reporter(), "x")
    assert set(results) == {cells[0], cells[2], cells[3]}
    assert failures == {cells[1]: "its process ended with exit code 9"}


def test_a_grid_that_is_killed_as_it_begins_can_be_begun(recipe, monkeypatch):
    output = Path(recipe.output)

    def killed(path, value):
        assert path.parent != output  # where a kill would leave a directory without the file
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(grid, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            open_grid(recipe).__enter__()
    assert not output.exists()
    with open_grid(recipe) as begun:
        assert (begun / "grid.json").is_file()


def test_cells_are_trained_in_the_order_that_they_are_asked_for(recipe, tmp_path, monkeypatch):
    """What stands in several rows is trained for the first of them, so that a comparison cut short has its first."""
    monkeypatch.setattr(grid, "_work", deadly)
    first, second, third = cell_of("1111", 0), cell_of("0011", 0), cell_of("1100", 0)
    asked = [Job(cell) for cell in (first, second, first, third, second)]
    results, _ = run_cells(recipe, asked, tmp_path, 1, Reporter(), "x")
    assert list(results) == [first, second, third]


def test_after_an_unforeseen_error_a_new_process_goes_on(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_work", stuck_work)
    cells = [cell_of("0011", seed) for seed in range(3)]
    results, failures = run_cells(recipe, list(map(Job, cells)), tmp_path, 1, Reporter(), "x")
    assert set(results) == set(cells[1:])
    assert "device-side assert" in failures[cells[0]]


def test_no_rate_is_chosen_from_those_that_happened_to_finish(recipe, monkeypatch):
    def fake(given, wanted, output, jobs, reporter, label):
        cells = [job.cell for job in wanted]
        return {c: Result(c, {"accuracy": 0.5}, 1, (1.0,)) for c in cells[1:]}, {cells[0]: "out of memory"}

    monkeypatch.setattr(rates_module, "run_cells", fake)
    given = replace(recipe, compare=replace(recipe.compare, learning_rates=[1e-3, 1e-2]))
    with pytest.raises(LayersiftError, match=r"while trainings fail: .*: out of memory"):
        rates_module.choose_rates(given, [2, 4], 4, ["lora"], "classification", 1, Reporter())


def tuned(monkeypatch, recipe, score, rates=(1e-4, 1e-3, 1e-2), n=1000):
    """Rates for two and four layers, where so many of n rows are right; and the cells that were trained."""
    seen = []

    def fake(given, wanted, output, jobs, reporter, label):
        found, failed = {}, {}
        for cell in (job.cell for job in wanted):
            right = score(cell.mask.count("1"), cell.train.learning_rate)
            if right is None:
                failed[cell] = "training diverged at step 3 of 9: its loss is nan"
            else:
                outcomes = (1.0,) * right + (0.0,) * (n - right)
                found[cell] = Result(cell, {"accuracy": right / n}, n, outcomes)
        seen.extend([*found, *failed])
        return found, failed

    monkeypatch.setattr(rates_module, "run_cells", fake)
    given = replace(recipe, compare=replace(recipe.compare, learning_rates=list(rates)))
    return rates_module.choose_rates(given, [2, 4], 4, ["lora"], "classification", 1, Reporter()), seen


def test_learning_rates_are_chosen_on_held_back_rows_with_random_layers(recipe, monkeypatch):
    best = {2: 1e-3, 4: 1e-2}
    found, seen = tuned(monkeypatch, recipe, lambda n, rate: round(900 - 200 * abs(np.log10(rate / best[n]))))
    assert {key: rate.chosen for key, rate in found.items()} == {("lora", 2): 1e-3, ("lora", 4): 1e-2}
    assert found["lora", 2].scores == pytest.approx({1e-4: 0.7, 1e-3: 0.9, 1e-2: 0.7})
    assert found["lora", 4].scores == pytest.approx({1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.9, 1e-1: 0.7})  # one beyond the edge
    assert not any(rate.at_edge for rate in found.values())
    assert all(len(rate.alike) == 1 for rate in found.values())
    assert {c.judged for c in seen} == {"validation"}
    assert {c.mask for c in seen} == {draw_masks(4, 2, 1, 0)[0], "1111"}


def test_the_grid_of_rates_grows_to_either_side_and_not_for_ever(recipe, monkeypatch):
    def score(n, rate):
        return round(500 + (50 if n == 2 else -50) * np.log10(rate))

    found, _ = tuned(monkeypatch, recipe, score, (1e-5, 1e-4, 1e-3))
    assert sorted(found["lora", 2].scores) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert sorted(found["lora", 4].scores) == pytest.approx([1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
    assert all(rate.at_edge for rate in found.values())
    found, _ = tuned(monkeypatch, recipe, score)
    assert sorted(found["lora", 2].scores) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])  # nothing trains at 10


def test_a_tie_between_rates_does_not_decide_and_is_told(recipe, monkeypatch):
    """As on TREC: .90367 at both rates for half of the layers, while all layers train clearly better at the higher."""

    def score(layers, rate):
        if rate not in (1e-3, 3e-3):
            return 400
        return 904 if layers == 2 else 700 if rate == 1e-3 else 912

    found, _ = tuned(monkeypatch, recipe, score, (1e-3, 3e-3))
    assert found["lora", 2].alike == (1e-3, 3e-3)
    assert found["lora", 4].alike == (3e-3,)
    assert {rate.chosen for rate in found.values()} == {3e-3}


def test_cells_that_tie_do_not_get_each_others_rate(recipe, monkeypatch):
    """Each is a little better at its own rate, and no row of the tests can tell: both have one."""

    def score(layers, rate):
        best = 9e-3 if layers == 2 else 3e-3
        return {3e-3: 900, 9e-3: 900}.get(rate, 500) + (3 if rate == best else 0) + (1 if rate == 9e-3 else 0)

    found, _ = tuned(monkeypatch, recipe, score, (1e-3, 3e-3, 9e-3, 27e-3))
    assert all(rate.alike == (3e-3, 9e-3) for rate in found.values())
    assert {rate.chosen for rate in found.values()} == {9e-3}  # of the better mean


def test_where_no_rate_ties_for_all_each_has_its_own_best(recipe, monkeypatch):
    def score(layers, rate):
        ties = {2: {3e-3: 902, 9e-3: 903}, 4: {1e-3: 901, 3e-4: 900}}[layers]
        return ties.get(rate, 500)

    found, _ = tuned(monkeypatch, recipe, score, (1e-4, 3e-4, 1e-3, 3e-3, 9e-3, 27e-3))
    assert {key[1]: rate.chosen for key, rate in found.items()} == {2: 9e-3, 4: 1e-3}


def test_a_rate_is_chosen_with_layers_that_no_row_has(recipe, monkeypatch):
    drawn = draw_masks(4, 2, 1, 0)[0]
    seen = set()

    def fake(given, wanted, output, jobs, reporter, label):
        seen.update(job.cell.mask for job in wanted)
        return {job.cell: Result(job.cell, {"accuracy": 0.5}, 2, (1.0, 0.0)) for job in wanted}, {}

    monkeypatch.setattr(rates_module, "run_cells", fake)
    given = replace(recipe, compare=replace(recipe.compare, learning_rates=[1e-3, 1e-2]))
    every = {"1111", "", drawn, "0011"}
    rates_module.choose_rates(given, [2, 4], 4, ["lora"], "classification", 1, Reporter(), every)
    assert "1111" in seen
    assert len(seen) == 2
    assert {drawn, "0011"}.isdisjoint(seen)


def test_without_rates_to_choose_among_each_row_has_the_default_of_its_layers_and_rank(recipe):
    given = replace(recipe, train=replace(recipe.train, learning_rate=None))
    rows_ = [
        choice_of("last", 2, ["0011"], None),
        choice_of(ALL, 2, ["1111"], None),
        choice_of(MATCHED, 2, ["1111"], None, rank=4, alpha=8),
        choice_of(ALL, 2, ["1111"], None, budget=0.5, epochs=0.5),
        choice_of(BASE, 2, [""], None),
    ]
    found, _ = with_rates(given, rows_, 4, "classification", 1, Reporter())
    last, every, matched, budget, untouched = (c.train.learning_rate for c in found)
    assert last == pytest.approx(every * 2**0.75, rel=0.05)
    assert (matched, budget, untouched) == (every, every, None)  # of one scale; a lower rank asks for no higher rate


def test_a_rate_at_which_training_diverges_is_not_chosen(recipe, monkeypatch):
    found, _ = tuned(monkeypatch, recipe, lambda n, rate: None if rate > 2e-3 else round(900 + 1e5 * rate))
    assert {rate.chosen for rate in found.values()} == {1e-3}
    assert found["lora", 2].scores[1e-2] is None
    with pytest.raises(LayersiftError, match="at no learning rate is there a score for lora, 2 layers; give others"):
        tuned(monkeypatch, recipe, lambda n, rate: None)


def test_each_row_may_have_its_own_rate(recipe, monkeypatch):
    best = {"0011": 1e-2, "1111": 1e-3}
    cells = []

    def fake(given, wanted, output, jobs, reporter, label):
        cells.extend(job.cell for job in wanted)
        off = {job.cell: abs(np.log10(job.cell.train.learning_rate / best[job.cell.mask])) for job in wanted}
        right = {cell: round(900 - 200 * o) for cell, o in off.items()}
        return {
            c: Result(c, {"accuracy": n / 1000}, 1000, (1.0,) * n + (0.0,) * (1000 - n)) for c, n in right.items()
        }, {}

    monkeypatch.setattr(rates_module, "run_cells", fake)
    given = replace(recipe, compare=replace(recipe.compare, learning_rates=[1e-3, 1e-2], tune="each"))
    rows_ = [
        choice_of("last", 2, ["0011"], None),
        choice_of(ALL, 2, ["1111"], None),
        choice_of("freezing", 2, ["1111"], None, strategy="freezing"),
        choice_of(ALL, 2, ["1111"], None, budget=0.5, epochs=0.5),
        choice_of(BASE, 2, [""], None),
    ]
    found, rates = with_rates(given, rows_, 4, "classification", 1, Reporter())
    assert [c.train.learning_rate for c in found] == [1e-2, 1e-3, 1e-3, 1e-3, None]
    assert set(rates) == {"lora, 0011", "lora, 1111", "lora, 1111, freezing"}
    assert {c.train.strategy for c in cells} == {"static", "freezing"}


def test_rows_to_choose_rates_by_are_neither_trained_on_nor_tested_on(recipe, tmp_path):
    from layersift.experiment.prepare import split_tables

    given = replace(recipe, compare=replace(recipe.compare, learning_rates=[1e-3, 1e-2]))
    test, validation = split_tables(given)
    held_back = [json.dumps(r) for r in validation.test[""].rows]
    assert len(held_back) == 13
    assert [json.dumps(r) for r in validation.train.rows] == [json.dumps(r) for r in test.train.rows]
    assert len(test.train.rows) == 51
    lone = [{"text": "w1 w2", "label": "rare"}]
    Path(tmp_path / "lone.jsonl").write_text("\n".join(map(json.dumps, rows(64, 0) + lone * 2)))
    rare = replace(given, data=replace(given.data, data=str(tmp_path / "lone.jsonl")))
    for seed in range(12):  # held back by some, in part by others
        _, validation = split_tables(replace(rare, seed=seed))
        labels = [{r["label"] for r in t} for t in (validation.train.rows, validation.test[""].rows)]
        assert labels[1] <= labels[0]
    assert split_tables(recipe)[1] is None
    assert len(split_tables(recipe)[0].train.rows) == 64


def test_retention_is_the_loss_on_other_text(no_kinds, task, llama_directory, tmp_path):
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
    comparison = compare(given)
    found = {s.choice.name: s for s in comparison.rows if s.choice.budget is None}
    cells = [Result.load(p) for p in (tmp_path / "out" / "cells").glob("*.json")]
    untouched = next(c for c in cells if not c.cell.mask)
    last = next(c for c in cells if c.cell.mask == "0011" and c.cell.train.epochs == given.train.epochs)
    assert untouched.retention_loss > 0
    assert found["last"].retention == pytest.approx((untouched.retention_loss, last.retention_loss))
    assert len(last.weights) == len(last.outcomes) == 24
    assert last.score == pytest.approx(np.average(last.outcomes, weights=last.weights), abs=1e-5)
    assert found[BASE].retention is None
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


def placed_among(scores, drawn, chosen):
    """Subsets of made-up scores, a tuple a mask and one a seed; where choices stand among them; what was left out."""
    seeds = tuple(range(len(next(iter(scores.values())))))
    choice = choice_of("subsets", 2, tuple(scores))
    made = {
        cell_of(mask, seed, learning_rate=1e-3): Result(
            cell_of(mask, seed, learning_rate=1e-3), {"accuracy": value}, 1, (1.0,)
        )
        for mask, values in scores.items()
        for seed, value in zip(seeds, values, strict=True)
        if value != "failed"
    }
    failures = {
        cell_of(m, s, learning_rate=1e-3): "out of memory" for m, v in scores.items() for s in seeds if v[s] == "failed"
    }
    left_out = {}
    subsets = rank_subsets(choice, Trained(seeds, made, failures), drawn, left_out)
    placed = place(chosen, subsets, 1, left_out)
    return SimpleNamespace(subsets=subsets, placed=placed, left_out=left_out)


def test_a_sampled_oracle_ranks_choices_among_what_was_drawn(recipe):
    scores = {"1100": (0.50,), "1010": (0.51,), "1001": (0.52,), "0110": (0.80,), "0101": (0.81,), "0011": (0.83,)}
    found = placed_among(scores, ["1100", "1010", "1001"], {"a": "0110", "b": "0101", "c": "0011", "d": "1010"})
    assert {p.criterion: p.percentile for p in found.placed} == {"a": 100, "b": 100, "c": 100, "d": 50}
    assert {p.criterion: (p.place, p.among) for p in found.placed}["d"] == (2, 3)
    assert {p.criterion: p.lost for p in found.placed}["a"] == pytest.approx(0.03)
    whole = Oracle(recipe, "accuracy", 2, 4, (0,), 6, found.subsets, found.placed, 0.9, 1e-3, 1e-3, None, {}, {})
    assert "3 of 6 subsets" in oracle_caption(whole)
    assert "mean 51.0" in oracle_caption(whole)
    assert "no better" not in oracle_caption(whole)
    always = replace(whole, majority=Majority("a", {"": 0.515}))
    assert "2 of 6 trainings are no better" in oracle_caption(always)


def test_equal_means_tie_whatever_the_order_of_their_seeds():
    scores = {"1100": (0.918, 0.938), "1010": (0.928, 0.928), "1001": (0.938, 0.918)}
    found = placed_among(scores, list(scores), {"a": "1100", "b": "1010", "c": "1001"})
    assert {p.place for p in found.placed} == {1}
    assert {p.percentile for p in found.placed} == {50}


def test_an_oracle_of_subsets_that_learned_nothing_ranks_none(done, monkeypatch):
    given, _ = done
    always = Majority("a", {"": 1.0})
    monkeypatch.setattr(Prepared, "majority", property(lambda prepared: always))
    found = oracle(given, size=2, jobs=2)
    assert found.nothing_learned.startswith("Nothing was learned")
    assert found.placed == ()
    assert [s.mask for s in found.subsets] == sorted(s.mask for s in found.subsets)
    assert {"last", "cka"} <= set(found.left_out)
    told = oracle_caption(found)
    assert told.startswith(found.nothing_learned)
    assert "Best" not in told


def test_a_subset_that_fails_is_left_out_of_the_oracle_and_said():
    scores = {"1100": ("failed", 0.5), "1010": (0.6, 0.6), "1001": (0.7, None), "0110": (0.8, 0.8)}
    found = placed_among(scores, list(scores), {"a": "1100", "b": "0110"})
    assert [s.mask for s in found.subsets] == ["0110", "1010"]
    assert [p.criterion for p in found.placed] == ["b"]
    assert found.left_out == {
        "1100": "out of memory",
        "1001": "its score is undefined",
        "a": "its choice 1100 has no score",
    }
    with pytest.raises(LayersiftError, match="fewer than two subsets"):
        placed_among({"1100": ("failed",), "1010": (0.5,)}, ["1100", "1010"], {})


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
        (["--sizes", "0"], "compare.sizes[0]: expected int >= 1"),
        (["--sizes", "2,2"], "compare.sizes: 2: each can be named once"),
        (["--criteria", "cka,cka"], "cka: each can be named once"),
        (["--seeds", "0"], "compare.seeds: expected int >= 1"),
        (["--methods", "lorra"], "unknown method 'lorra'"),
        (["--jobs", "0"], "'--jobs'"),
        (["--set", "compare.probe_share=2"], "compare.probe_share: expected float <= 1"),
        (["--set", "compare.learning_rates=[fast]"], "compare.learning_rates[0]: expected float, got str"),
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


def test_a_comparison_that_races_ends_in_the_same_verdicts_with_fewer_trainings(task, bert_directory, tmp_path):
    of = {"compare": {"criteria": ["last", "alternate"], "seeds": 5, "race": True}}
    path = write_recipe(tmp_path / "r.yaml", bert_directory, task, **of)
    given = read_recipe(path, [], str(tmp_path / "out"))
    found = compare(given, jobs=2)
    cells = len(list(Path(tmp_path / "out" / "cells").glob("*.json")))
    stopped = [row for row in found.rows if row.settled]
    assert len(stopped) > 0
    assert all(row.settled in ("settled after 3 of 5 seeds", "settled after 4 of 5 seeds") for row in stopped)
    assert cells < len({cell for row in found.rows for cell in row.choice.cells(range(5))})
    assert any(stopped[0].settled in cell for _, rows in headings(found) for row in rows for cell in row)
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["settled"] == found.rows[0].settled
    again = compare(given, jobs=2)  # nothing is trained again
    assert again.rows == found.rows
    assert len(list(Path(tmp_path / "out" / "cells").glob("*.json"))) == cells


def test_a_race_needs_more_than_three_seeds(task, bert_directory, tmp_path):
    path = write_recipe(tmp_path / "r.yaml", bert_directory, task, compare={"seeds": 3, "race": True})
    with pytest.raises(LayersiftError, match=r"compare.race stops rows after 3 seeds at the earliest.*seeds is 3"):
        read_recipe(path, [], str(tmp_path / "out"))
