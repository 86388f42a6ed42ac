"""`layersift train`: adapters on the selected layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.train import TrainSettings, WatchSettings

from . import options as o
from .flags import Without, with_settings

if TYPE_CHECKING:
    from layersift.records.runs import HeldBack, RunRecord
    from layersift.records.selection import Selection

    from .console import Console

Sharding = Literal["none", "fsdp"]


@with_settings
def train(
    model: Annotated[ModelSource, Without(("stream",))],
    data: DataSettings,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory to write; must not exist.")],
    settings: TrainSettings,
    watch: WatchSettings,
    selection: Annotated[
        Path | None, typer.Option(help="The selection file: which layers carry adapters. [all layers]")
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="Without --selection: train this fraction of the layers, chosen by CKA on the data."),
    ] = None,
    layers: o.Layers = None,
    sharding: Annotated[
        Sharding, typer.Option(help="In several processes: fsdp keeps a part of the frozen blocks in each.")
    ] = "none",
    resume: Annotated[bool, typer.Option("--resume", help="Carry on from the last checkpoint.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapters merged in.")] = False,
    seed: o.Seed = 0,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train adapters on all layers of MODEL, or on the selected ones and nowhere else."""
    from layersift.config.quantities import towers_of
    from layersift.config.select import SelectSettings
    from layersift.experiment.train_task import carry_out, prepare_training
    from layersift.processes import is_main_process, join_processes, take_sharding
    from layersift.records.reading import to_json
    from layersift.task import Task
    from layersift.training.output import RunOutput
    from layersift.training.watch import require_trackers

    from .console import Console

    console = Console(quiet, json)
    place = RunOutput(output, resume, merge, take_sharding(sharding == "fsdp"))
    if is_main_process():
        place.require_free()
    place.require_apart(settings.activation_cache)
    require_trackers(watch.trackers)
    chosen = _given(selection, ratio, layers)
    choosing = SelectSettings(ratio=ratio, seed=seed) if ratio is not None else None
    task = Task.open(model, data, tower=towers_of(layers), record=chosen.data if chosen is not None else None)
    prepared = prepare_training(task, settings, watch, seed, chosen, choosing, layers)
    resolved = {**prepared.described(), "output": str(output)}
    if dry_run:
        console.say(o.listed(resolved))
        o.say_how_to_do_it(console)
        console.result(resolved)
        return
    told = f"; {resolved['adapters']}" if ratio is None else ""
    by_rule = "" if settings.learning_rate is not None else " (the default for this task, model and number of layers)"
    said = resolved["learning rate"]
    rate = f"learning rate: {said if isinstance(said, str) else f'{said:g}{by_rule}'}"
    console.say(f"{resolved['columns']}\nlayers: {resolved['layers']}{told}\n{rate}")
    if watch.hold_back is not None:
        console.say(f"held back: {resolved['held back']}")
    with join_processes():
        record = carry_out(prepared, place, console)
    _tell(record, output, console)
    console.result(to_json(record))


def _given(selection: Path | None, ratio: float | None, layers: str | None) -> Selection | None:
    """The selection that is given, if one is.

    Raises:
        LayersiftError: more than one of the three is given.
    """
    from layersift.errors import LayersiftError
    from layersift.records.selection import Selection

    if sum(given is not None for given in (selection, ratio, layers)) > 1:
        raise LayersiftError(
            "give --selection FILE, --layers last:8, or --ratio 0.5 to have the layers chosen here: one of them, or "
            "none for all layers"
        )
    return Selection.load(selection) if selection is not None else None


def _tell(record: RunRecord, output: Path, console: Console) -> None:
    """What a training came to."""
    from .console import next_step

    peak = f", peak memory {record.peak_memory_bytes / 2**20:,.0f} MiB" if record.peak_memory_bytes is not None else ""
    console.say(
        f"{record.steps} steps in {record.train_seconds:.1f} s{peak}, {record.trainable_parameters:,} trained "
        f"parameters, mean loss {record.train_loss:.4f}\nwritten to {output}"
    )
    if record.shared_prompt_tokens:
        console.say(
            f"the first {record.shared_prompt_tokens} tokens of all rows were computed once below the trained layers"
        )
    if record.stopped is not None:
        console.say(f"kept is {record.stopped}")
    if record.held_back is not None:
        _tell_held_back(record.held_back, output, console)
    for notice in record.notices:
        console.say(f"note: {notice}")
    console.say(next_step("judge it on other rows", "layersift", "evaluate", output, "--data", "FILE"))


def _tell_held_back(judged: HeldBack, output: Path, console: Console) -> None:
    """What the finished run scores on the rows held back, beside the majority class, and what to mind."""
    name, score = next(iter(judged.metrics.items()))
    said = "undefined" if score is None else f"{score:.4f}"
    if judged.interval is not None:
        said += f" ({judged.interval[0]:.4f} to {judged.interval[1]:.4f}, 95% interval)"
    console.say(f"{name.replace('_', ' ')} {said} on the {len(judged.rows)} rows held back: {output / judged.file}")
    if judged.majority is not None and judged.majority_accuracy is not None:
        console.say(
            f"always {judged.majority!r}, the most common class in training: accuracy {judged.majority_accuracy:.4f}"
        )
    if judged.chose_the_stop:
        console.say("these rows also decided when to stop, so that the score is a little too good")
    if judged.tokens_seen:
        console.warn(
            f"{judged.tokens_seen} of the rows held back have the tokens of a training row, so that the score is too "
            "good; --max-length may cut what tells them apart"
        )
    if never := judged.never_predicted:
        rows = sum(judged.class_rows[each] for each in never)
        console.warn(
            f"never predicted: {', '.join(map(repr, never))} ({rows} of the rows held back); train for more --epochs "
            "or on more rows of it"
        )
