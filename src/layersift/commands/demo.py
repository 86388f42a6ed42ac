"""`layersift demo`: the main job on a real model and real text, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .run import require_variants, tell


def demo(
    model: Annotated[
        str, typer.Option(help="minilm (docstrings to packages) or smollm2 (writing functions).")
    ] = "minilm",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New, or of an earlier demo, which is carried on.")
    ] = Path("layersift-demo"),
    jobs: o.Jobs = 1,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Select, train and compare layers of a small model on text from the Python that is running."""
    from layersift.advise.demo import DEMO_TIME, demo_recipe, follow_advice
    from layersift.config.fields import json_values
    from layersift.errors import unknown_name
    from layersift.experiment.run import run
    from layersift.report.advice import advice_json
    from layersift.report.advice_text import advice_words, followed_words

    from .console import Console, next_step

    if model not in ("minilm", "smollm2"):
        raise unknown_name("demo model", model, ["minilm", "smollm2"])
    console = Console(quiet, json)
    recipe = demo_recipe(model, output)  # type: ignore[arg-type]
    outcome = run(recipe, jobs, console)
    console.say(f"picture: {recipe.output}/importance.png; table: {recipe.output}/table.md")
    tell(outcome, console)
    require_variants(outcome)
    console.say(f"\nAnd within {DEMO_TIME} of the time that all layers take?")
    followed = follow_advice(outcome, output / f"{model}-advised", jobs, console)
    for line in [*advice_words(followed.advice), *followed_words(followed)]:
        console.say(line)
    console.say(next_step("ask it of your data", "layersift", "advise", recipe.model.name, "--data", "FILE"))
    console.result(
        {
            "variants": outcome.results(),
            "advice": advice_json(followed.advice),
            "advised": followed.result.summary(),
            "from_all": json_values(followed.from_all),
        }
    )
