"""`layersift train`: adapters on the selected layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layersift.config.data import DataSettings
from layersift.config.model import ModelSource
from layersift.config.train import TrainSettings
from layersift.config.watch import WatchSettings

from . import options as o
from .flags import Without, with_settings


@with_settings
def train(
    model: Annotated[ModelSource, Without(("stream",))],
    data: DataSettings,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory to write; must not exist.")],
    settings: TrainSettings,
    watch: WatchSettings,
    selection: Annotated[Path | None, typer.Option(help="The selection file: which layers carry adapters.")] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="Without --selection: train this share of the layers, chosen by CKA on the data."),
    ] = None,
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
    from layersift.adapt.ranks import with_ranks
    from layersift.config.defaults import Trained, hidden_size, with_defaults
    from layersift.config.select import SelectSettings, how_many
    from layersift.errors import LayersiftError
    from layersift.evaluation.judging import watch_of
    from layersift.load.blocks import find_stack
    from layersift.load.models import empty_model, load_config, load_model, require_writer
    from layersift.load.task import classes_of, encode_sample, encoder_of, read_data
    from layersift.records.data import describe, read_as_recorded
    from layersift.records.reading import to_json
    from layersift.records.selection import Selection
    from layersift.step.prefix_cache import require_cache_place
    from layersift.training.fit import TrainingData
    from layersift.training.fit import train as train_adapters
    from layersift.training.output import RunOutput
    from layersift.training.trackers import require_trackers

    from .console import Console

    console = Console(quiet, json)
    place = RunOutput(output, resume, merge)
    place.require_free()
    require_trackers(watch.trackers)
    if (selection is None) == (ratio is None):
        raise LayersiftError("give --selection FILE, or --ratio 0.5 to have the layers chosen here: one of them")
    chosen = Selection.load(selection) if selection is not None else None
    choosing = SelectSettings(ratio=ratio, seed=seed)
    table = (read_as_recorded(data, chosen.data) if chosen is not None else None) or read_data(data)
    classes = classes_of(table, load_config(model))
    count = min(settings.max_samples or len(table.rows), len(table.rows))
    adapter = adapter_config(settings, table.kind, settings.steps(count))
    empty = empty_model(model, table.kind)
    require_writer(empty, table.kind, model.name)
    require_cache_place(settings.prefix_cache)
    if chosen is not None:
        stack, layers = chosen.stack(empty), chosen.selected_layers
        which, count_of = f"{chosen.mask} ({chosen.rule})", len(layers)
        if adapter is not None:
            adapter = chosen.config_for(empty, adapter, settings.ranks)
    else:
        stack = find_stack(empty)
        layers, count_of = tuple(range(stack.num_layers)), how_many(choosing, stack.num_layers) or stack.num_layers
        which = f"{count_of} of {stack.num_layers}, to be chosen by {choosing.criterion}; adapters below: of all"
        if adapter is not None:
            adapter = with_ranks(empty, stack, layers, adapter, settings.ranks)
    settings = with_defaults(settings, Trained(table.kind, hidden_size(empty.config), count_of, stack.num_layers))
    modules = adapted_modules(empty, stack, layers, adapter)
    by_layer = trained_by_layer(empty, stack, layers, adapter)
    parameters = f", {sum(by_layer):,} parameters" if by_layer else ""
    resolved = {
        "model": model.name,
        "data": f"{data.data}, {count} of {len(table.rows)} rows",
        "columns": table.described(),
        "layers": which,
        "adapters": f"{settings.method} on {len(modules)} modules{parameters}",
        "modules": ", ".join(modules),
        "strategy": settings.strategy,
        "steps": settings.steps(count),
        "learning rate": settings.learning_rate,
        "output": str(output),
    }
    if dry_run:
        console.say(o.listed(resolved))
        console.result(resolved)
        return
    told = f"; {resolved['adapters']}" if chosen is not None else ""
    console.say(f"{resolved['columns']}; layers {resolved['layers']}{told}")
    loaded = load_model(model, table.kind, max(1, len(classes)), seed, bool(table.columns.image))
    encoder = encoder_of(data, table, classes, loaded.tokenizer, loaded.processor, loaded.model.config)
    if chosen is None:
        from layersift.select.choose import select
        from layersift.select.sample import sample_table

        sample = sample_table(table, encoder, choosing)
        with console.stage("reading representations", len(sample.examples)) as progress:
            chosen = select(loaded, sample, choosing, progress=progress)
        console.say(f"layers {chosen.mask} ({chosen.rule})")
    encoded = encode_sample(table, encoder, settings.max_samples, seed)
    if encoded.notice:
        console.say(encoded.notice)
    rows = TrainingData(encoder, encoded.examples, describe(table, encoded.notice))
    most_tokens = settings.batch_size * max(len(example) for example in encoded.examples)
    # A terminal has the bar; a log has lines now and then.
    tell = console.say if watch.eval_data is not None or not console.err.is_terminal else None
    watched = watch_of(watch, table.columns, encoder, loaded.pad_id, most_tokens, tell)
    with console.stage("training", settings.steps(len(encoded.examples)), "steps") as progress:
        record = train_adapters(loaded, rows, chosen, settings, place, seed=seed, progress=progress, watch=watched)
    peak = f", peak memory {record.peak_memory_bytes / 2**20:,.0f} MiB" if record.peak_memory_bytes is not None else ""
    console.say(
        f"{record.steps} steps in {record.train_seconds:.1f} s{peak}, {record.trainable_parameters:,} trained "
        f"parameters, mean loss {record.train_loss:.4f}\nwritten to {output}"
    )
    if record.stopped is not None:
        console.say(f"kept is {record.stopped}")
    for notice in record.notices:
        console.say(f"note: {notice}")
    console.result(to_json(record))
