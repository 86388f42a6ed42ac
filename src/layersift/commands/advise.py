"""`layersift advise`: within my memory, my time or my parameters, what should I train?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layersift.config.limits import Devices, Limits, TrialSettings
from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.train import TrainSettings

from . import options as o
from .flags import Without, with_settings, words_of

if TYPE_CHECKING:
    from layersift.advise.adviser import Advice


@with_settings
def advise(
    context: typer.Context,
    model: Annotated[ModelSource, Without(("stream",))],
    data: DataSettings,
    limits: Limits,
    devices: Devices,
    trial: TrialSettings,
    settings: Annotated[TrainSettings, Without(("strategy", "prefix_dropout", "shared_prompt"))],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A directory for advice.json, advice.html and recipe.yaml; new.")
    ] = Path("layersift-advice"),
    seed: o.Seed = 0,
    on: o.On = None,
    gpus: o.Gpus = None,
    trainer_file: o.FromTrainer = None,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Say what to train of MODEL within your limits, what it takes, and what is risked."""
    from layersift.config.recipe import Recipe

    from .console import Console

    console = Console(quiet, json)
    devices.require(settings.batch_size, model.quantization)
    o.tell_trainer_file(context, console)
    recipe = Recipe(model=model, data=data, output=str(output / "run"), train=settings, seed=seed)
    console.say(f"reading {model.name} and {data.data}")

    # Behind the first line: these load PyTorch.
    from layersift.advise.adviser import advise as advise_on
    from layersift.advise.trial import trial_place
    from layersift.experiment.prepare import checked
    from layersift.report.advice import advice_json, write_advice
    from layersift.report.advice_text import advice_words

    jobs = o.carried_out_by(1, on, None, gpus)
    recipe, _, prepared = checked(recipe, console)
    advice = advise_on(
        recipe, prepared, limits, console, trial=trial.share, place=trial_place(output), jobs=jobs, devices=devices
    )
    write_advice(advice, output)
    for line in advice_words(advice):
        console.say(line)
    if trial.share is not None and advice.trial is None:
        console.say("Nothing was tried: fewer than two variants fit.")
    others = f"Other limits: {output / 'advice.html'}."
    if advice.recommended is not None:
        others += f" {_next(advice, devices, output)}"
    console.say(others)
    console.result(advice_json(advice))


def _next(advice: Advice, devices: Devices, output: Path) -> str:
    """The command that trains what is advised: a recipe, FSDP's shards by `train`, ZeRO 3 in another trainer."""
    from layersift.config.quantities import layers_told

    from .console import next_step

    if devices.count == 1:
        return next_step("do it", "layersift", "run", output / "recipe.yaml")
    if devices.way == "zero3":
        return next_step("write it for a trainer with DeepSpeed", "layersift", "export", output, "--to", "axolotl")
    command = ["torchrun", "--nproc-per-node", devices.count, "-m", "layersift"]
    if devices.way == "ddp":
        return next_step("do it", *command, "run", output / "recipe.yaml")
    assert advice.recommended is not None
    variant, recipe = advice.recommended.variant, advice.recipe
    words = [*words_of(recipe.model, recipe.data, variant.train), "--layers", layers_told(variant.layers)]
    words += ["--seed", str(recipe.seed)] if recipe.seed else []
    return next_step("do it", *command, "train", *words, "--sharding", "fsdp", "-o", output / "run")
