"""The recipes that come with layersift: all of them parse and say what they are; one of each family runs small."""

import json
from pathlib import Path

import pytest

from cli import layersift
from layersift.adapt.methods import make_config
from layersift.config.recipe import find_recipe, is_figure, read_figure, read_recipe, recipe_names
from layersift.errors import LayersiftError
from layersift.experiment.smoke import CONFIGS

FIGURES = [name for name in recipe_names() if name.startswith("figures/")]
EXPERIMENTS = [name for name in recipe_names() if name not in FIGURES]
LAYERS = {"roberta-base": 12, "deberta-v3-base": 12, "llama-2-7b": 32, "mistral-7b": 32, "gemma-7b": 28}
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")


def test_what_is_shipped_holds_the_papers_experiments():
    assert set(EXPERIMENTS) == {
        *(f"glue/{model}/{task}" for model in ("roberta-base", "deberta-v3-base") for task in GLUE),
        *(
            f"{task}/{model}/{method}"
            for task in ("math", "code")
            for model in ("llama-2-7b", "mistral-7b", "gemma-7b")
            for method in ("lora", "pissa")
        ),
        "scienceqa/llava-1.5-7b",
    }
    assert len(FIGURES) == 4


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_recipe_is_the_papers_rule_on_half_of_the_layers(name):
    recipe = read_recipe(find_recipe(name))
    assert (recipe.select.compat, recipe.select.ratio) == ("paper", 0.5)
    (mask,) = (variant.partition("=")[2] for variant in recipe.variants if "=" in variant)
    model = name.split("/")[1]
    assert len(mask) == LAYERS.get(model, 32)
    assert mask.count("1") == len(mask) // 2 or model in ("gemma-7b", "llava-1.5-7b"), mask
    assert recipe.smoke is not None
    assert recipe.smoke.model_type in CONFIGS
    assert recipe.about.startswith("Paper")
    assert "Needs:" in recipe.about
    train = recipe.train
    options = {"rank": train.rank, "alpha": train.alpha, "dropout": train.dropout, "task_type": "CAUSAL_LM"}
    assert make_config(train.method, target_modules=train.target_modules, **options).r == train.rank
    assert ("pissa" in name) == (train.method == "pissa")


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("cola", ["matthews"]),
        ("mrpc", ["f1", "accuracy"]),
        ("qqp", ["f1", "accuracy"]),
        ("stsb", ["pearson", "spearman"]),
        ("mnli", ["accuracy"]),
        ("sst2", ["accuracy"]),
    ],
)
def test_glue_is_judged_by_glues_metrics(task, metrics):
    for model in ("roberta-base", "deberta-v3-base"):
        assert sorted(read_recipe(find_recipe(f"glue/{model}/{task}")).evaluate.metrics) == sorted(metrics)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_recipes_that_exist(name):
    assert is_figure(find_recipe(name))
    figure = read_figure(find_recipe(name))
    assert set(figure.recipes) <= set(EXPERIMENTS)


def test_recipes_are_found_by_name_or_path(tmp_path):
    assert find_recipe("glue/roberta-base/sst2") == find_recipe("recipes/glue/roberta-base/sst2.yaml")
    own = tmp_path / "mine.yaml"
    own.write_text("model: x")
    assert find_recipe(str(own)) == own
    with pytest.raises(LayersiftError, match=r"unknown recipe 'glue/roberta-base/sst'\. Did you mean"):
        find_recipe("glue/roberta-base/sst")


def paper_name(name):
    family, model, *rest = name.split("/")
    if family == "glue":
        return f"encoder-only/{model.replace('deberta-v3', 'debertav3').replace('-', '_')}_{rest[0]}_"
    if family == "scienceqa":
        return "multimodal/run_llava_sqa"
    return f"decoder-only/run_{model.split('-')[0]}_{rest[0]}_{'metamath' if family == 'math' else 'python'}"


def test_settings_are_the_published_ones(pytestconfig):
    data = pytestconfig.getoption("--data")
    published = Path(data or "").parent / "paper" / "settings.json"
    if not data or not published.is_file():
        pytest.skip("needs the paper's settings.json beside --data=DIRECTORY")
    settings = json.loads(published.read_text())
    for name in EXPERIMENTS:
        recipe, (values,) = (
            read_recipe(find_recipe(name)),
            [v for k, v in settings.items() if k.startswith(paper_name(name))],
        )
        assert values["lora_layers"] in {variant.partition("=")[2] for variant in recipe.variants}, name
        train = recipe.train
        for found, keys in (
            (train.learning_rate, ("learning_rate", "lr")),
            (train.epochs, ("num_train_epochs", "epochs")),
            (train.batch_size, ("per_device_train_batch_size",)),
            (train.rank, ("lora_r", "lora_rank")),
            (train.alpha, ("lora_alpha",)),
            (train.dropout, ("lora_dropout",)),
            (train.warmup_ratio, ("warmup_ratio",)),
            (train.weight_decay, ("weight_decay",)),
            (train.gradient_accumulation, ("gradient_accumulation_steps", "grad_accum")),
        ):
            given = [values[key] for key in keys if key in values]
            assert not given or float(given[0]) == found, (name, keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "glue/deberta-v3-base/mnli",
        "math/llama-2-7b/pissa",
        "code/gemma-7b/lora",
        "scienceqa/llava-1.5-7b",
        "figures/first-layer",
    ],
)
def test_one_of_each_family_runs_small(tmp_path, name):
    done = layersift("run", f"recipes/{name}.yaml", "--smoke", "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    if name.startswith("figures/"):
        assert (tmp_path / "out-smoke" / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert set(results) == set(read_figure(find_recipe(name)).recipes)
        return
    assert "A smoke run: a tiny random model" in (tmp_path / "out-smoke" / "table.md").read_text()
    variants = {r["variant"] for r in results}
    assert variants == {"selected", "published", "all", "random", "base"}
    by_variant = {r["variant"]: r for r in results}
    assert 0 < by_variant["selected"]["trainable_parameters"] < by_variant["all"]["trainable_parameters"]
    assert all(r["samples"] == 8 for r in results)
