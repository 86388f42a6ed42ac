"""A sweep over ranks: trained as the rule says, judged over seeds and rows, within a budget."""

import json
from dataclasses import replace

import pytest
import yaml

from cli import layersift
from layersift.adapt.methods import alpha_at_rank
from layersift.config.defaults import Trained, default_rate
from layersift.config.recipe import read_recipe
from layersift.errors import LayersiftError
from layersift.experiment.run import _is_worse, _loses_little, parse_ranks, sweep_ranks
from layersift.statistics.intervals import Interval


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, bert_directory):
    place = tmp_path_factory.mktemp("ranks")
    rows = [
        {"text": f"{'w5 w9' if i % 2 else 'w40 w41'} w{i % 7}", "label": "yes" if i % 2 else "no"} for i in range(48)
    ]
    for name, of in (("train", rows[:32]), ("test", rows[32:])):
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of)))
    recipe = {
        "model": str(bert_directory),
        "data": str(place / "train.jsonl"),
        "evaluate": str(place / "test.jsonl"),
        "train": {"epochs": 8, "batch_size": 8},
        "compare": {"seeds": 2},
        "output": str(place / "out"),
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return place / "recipe.yaml"


@pytest.fixture(scope="module")
def swept(recipe_file):
    done = layersift("sweep", recipe_file, "--ranks", "4,1", "--json", cwd=recipe_file.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), recipe_file.parent / "out"


def test_every_rank_is_trained_with_every_seed_at_its_own_rate_and_the_same_scale(swept, recipe_file):
    values, output = swept
    assert [row["variant"] for row in values["results"]] == ["rank-1", "rank-4", "base"]
    assert values["seeds"] == [0, 1]
    assert [len(row["draws"]) for row in values["results"]] == [2, 2, 2]
    train = read_recipe(recipe_file).train
    cells = [json.loads(path.read_text())["cell"] for path in (output / "cells").glob("lora*.json")]
    assert {(cell["train"]["rank"], cell["seed"]) for cell in cells} == {(1, 0), (1, 1), (4, 0), (4, 1)}
    for cell in cells:
        own = cell["train"]
        assert own["alpha"] == alpha_at_rank(train.alpha, train.rank, own["rank"], by_root=False) == 2 * own["rank"]
        ranked = replace(train, rank=own["rank"], alpha=own["alpha"])
        rule = default_rate(ranked, Trained("classification", 32, 4, 4))
        assert own["learning_rate"] == pytest.approx(rule)
    assert {path.name for path in (output / "variants").iterdir()} == {
        f"rank-{rank}-seed-{seed}" for rank in (1, 4) for seed in (0, 1)
    }


def test_the_answer_stands_on_screen_in_the_table_and_in_the_picture(swept, recipe_file):
    values, output = swept
    shown = layersift("sweep", recipe_file, "--ranks", "1,4", cwd=recipe_file.parent)  # nothing is trained again
    assert shown.returncode == 0, shown.stderr
    score = values["results"][0]["score"]
    assert "2 seeds" in score["over"]
    assert score["low"] <= score["value"] <= score["high"]
    if values["best"] is None:
        assert "Nothing was learned" in shown.stdout
    else:
        assert f"Take rank {values['enough']}" in shown.stdout
    assert "2 seeds" in (output / "table.md").read_text()
    assert (output / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "figure.json").read_text())["figure"] == "ranks"


@pytest.mark.parametrize(
    ("edges", "sign", "little", "worse"),
    [
        ((-0.005, 0.02), 1, True, False),
        ((-0.36, 0.03), 1, False, False),  # nothing can be said of it
        ((-0.2, -0.1), 1, False, True),
        ((-0.02, 0.005), -1, True, False),  # of a loss
        ((0.02, 0.03), -1, False, True),
        ((None, None), 1, False, False),
    ],
)
def test_a_rank_is_good_enough_only_if_its_whole_interval_is(edges, sign, little, worse):
    interval = Interval(0.0, *edges, "2 seeds")
    assert (_loses_little(interval, sign), _is_worse(interval, sign)) == (little, worse)


def test_a_budget_takes_seeds_away_and_a_dry_run_says_what_is_left(recipe_file):
    command = ("sweep", recipe_file, "--ranks", "1,4", "--seeds", "3", "--dry-run", "--json")
    whole = json.loads(layersift(*command, cwd=recipe_file.parent).stdout)
    less = json.loads(layersift(*command, "--budget", "2.5", cwd=recipe_file.parent).stdout)
    assert (whole["trainings"], less["trainings"]) == (6, 2)
    assert less["flops"] == pytest.approx(whole["flops"] / 3)
    with pytest.raises(LayersiftError, match="one seed of these ranks takes"):
        sweep_ranks(read_recipe(recipe_file), "1,4", budget=0.5)
    with pytest.raises(LayersiftError, match="no rank"):
        sweep_ranks(read_recipe(recipe_file, ["train.method=full"]), "1,4")


@pytest.mark.parametrize("text", ["", "8", "8,8", "0,2", "2;4", "2,-4", "1000000,2"])
def test_what_names_no_ranks_is_refused(text):
    with pytest.raises(LayersiftError, match="at least two different ranks"):
        parse_ranks(text)
