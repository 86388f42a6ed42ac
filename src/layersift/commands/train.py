"""`layersift train`: adapters on the selected layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layersift.config.data import DataSettings
from layersift.config.model import ModelSource
from layersift.config.train import TrainSettings

from . import options as o
from .flags import Without, with_settings


@with_settings
def train(
    model: Annotated[ModelSource, Without(("stream",))],
    data: DataSettings,
    selection: Annotated[Path, typer.Option(help="The selection file: which layers carry adapters.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory to write; must not exist.")],
    settings: TrainSettings,
    resume: Annotated[bool, typer.Option("--resume", help="Carry on from the last checkpoint.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapters merged in.")] = False,
    seed: o.Seed = 0,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train adapters on the selected layers of MODEL and nowhere else."""
    from layersift.adapt.inspection import adapted_modules, trained_by_layer
    from layersift.adapt.methods import adapter_config
    from layersift.load.models import empty_model, load_config, load_model, require_writer
    from layersift.load.task import classes_of, encode_sample, encoder_of, read_data
    from layersift.records.data import describe
    from layersift.records.reading import to_json
    from layersift.records.selection import Selection
    from layersift.step.prefix_cache import require_cache_place
    from layersift.training.fit import TrainingData
    from layersift.training.fit import train as train_adapters
    from layersift.training.output import RunOutput

    from .console import Console

    console = Console(quiet, json)
    place = RunOutput(output, resume, merge)
    place.require_free()
    chosen = Selection.load(selection)
    table = read_data(data)
    classes = classes_of(table, load_config(model))
    count = min(settings.max_samples or len(table.rows), len(table.rows))
    adapter = adapter_config(settings, table.kind, settings.steps(count))
    empty = empty_model(model, table.kind)
    require_writer(empty, table.kind, model.name)
    require_cache_place(settings.prefix_cache)
    stack, layers = chosen.stack(empty), chosen.selected_layers
    if adapter is not None:
        adapter = chosen.config_for(empty, adapter, settings.ranks)
    modules = adapted_modules(empty, stack, layers, adapter)
    by_layer = trained_by_layer(empty, stack, layers, adapter)
    parameters = f", {sum(by_layer):,} parameters" if by_layer else ""
    resolved = {
        "model": model.name,
        "data": f"{data.data}, {count} of {len(table.rows)} rows",
        "columns": table.described(),
        "layers": f"{chosen.mask} ({chosen.rule})",
        "adapters": f"{settings.method} on {len(modules)} modules{parameters}",
        "modules": ", ".join(modules),
        "strategy": settings.strategy,
        "steps": settings.steps(count),
        "learning rate": settings.rate(table.kind),
        "output": str(output),
    }
    if dry_run:
        console.say(o.listed(resolved))
        console.result(resolved)
        return
    console.say(f"{resolved['columns']}; layers {resolved['layers']}; {resolved['adapters']}")
    loaded = load_model(model, table.kind, max(1, len(classes)), seed, bool(table.columns.image))
    encoder = encoder_of(data, table, classes, loaded.tokenizer, loaded.processor, loaded.model.config)
    encoded = encode_sample(table, encoder, settings.max_samples, seed)
    if encoded.notice:
        console.say(encoded.notice)
    rows = TrainingData(encoder, encoded.examples, describe(table, encoded.notice))
    with console.stage("training", settings.steps(len(encoded.examples)), "steps") as progress:
        record = train_adapters(loaded, rows, chosen, settings, place, seed=seed, progress=progress)
    peak = f", peak memory {record.peak_memory_bytes / 2**20:,.0f} MiB" if record.peak_memory_bytes is not None else ""
    console.say(
        f"{record.steps} steps in {record.train_seconds:.1f} s{peak}, {record.trainable_parameters:,} trained "
        f"parameters, mean loss {record.train_loss:.4f}\nwritten to {output}"
    )
    console.result(to_json(record))
