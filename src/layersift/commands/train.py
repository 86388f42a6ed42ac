"""`layersift train`: adapters on the selected layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layersift.config.inputs import DataSettings, ModelSource
from layersift.config.train import TrainSettings, WatchSettings

from . import options as o
from .flags import Without, with_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layersift.data.encode import Encoder
    from layersift.data.examples import Example
    from layersift.data.table import Table
    from layersift.records.run_record import HeldBack, RunRecord
    from layersift.records.selection import Selection
    from layersift.training.watch import Watch

    from .console import Console


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
    resume: Annotated[bool, typer.Option("--resume", help="Carry on from the last checkpoint.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapters merged in.")] = False,
    seed: o.Seed = 0,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train adapters on all layers of MODEL, or on the selected ones and nowhere else."""
    from layersift.adapt.inspection import adapted_modules, trained_by_layer
    from layersift.adapt.methods import adapter_config
    from layersift.adapt.ranks import with_ranks
    from layersift.config.defaults import Trained, fill_epochs, hidden_size, with_defaults
    from layersift.config.select import SelectSettings, how_many
    from layersift.data.encode import encode_sample, encoder_of
    from layersift.data.table import classes_of, read_data
    from layersift.models.load import empty_model, load_config, load_model, require_writer
    from layersift.models.stacks import find_stack
    from layersift.records.data import describe, read_as_recorded
    from layersift.records.reading import to_json
    from layersift.step.prefix_cache import require_cache_place
    from layersift.training.fit import TrainingData
    from layersift.training.fit import train as train_adapters
    from layersift.training.output import RunOutput
    from layersift.training.trackers import require_trackers

    from .console import Console

    console = Console(quiet, json)
    place = RunOutput(output, resume, merge)
    place.require_free()
    place.require_apart(settings.prefix_cache)
    require_trackers(watch.trackers)
    chosen = _given(selection, ratio)
    choosing = SelectSettings(ratio=ratio, seed=seed)
    table = (read_as_recorded(data, chosen.data) if chosen is not None else None) or read_data(data)
    classes = classes_of(table, load_config(model))
    trained, watched = _sides(table, watch, seed)
    if watch.hold_back is not None and chosen is not None and _scored_on(chosen, table):
        console.warn("the layers were chosen on all rows, with those that are held back here")
    count = min(settings.max_samples or len(trained.rows), len(trained.rows))
    settings = fill_epochs(settings, table.kind, count)
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
        layers, count_of = tuple(range(stack.num_layers)), stack.num_layers
        which = f"all {count_of}; nothing is scored, since neither --selection nor --ratio is given"
        if ratio is not None:
            count_of = how_many(choosing, stack.num_layers) or stack.num_layers
            which = f"{count_of} of {stack.num_layers}, to be chosen by {choosing.criterion}; adapters below: of all"
        if adapter is not None:
            adapter = with_ranks(empty, stack, layers, adapter, settings.ranks)
    by_rule = "" if settings.learning_rate is not None else " (the default for this task, model and number of layers)"
    settings = with_defaults(settings, Trained(table.kind, hidden_size(empty.config), count_of, stack.num_layers))
    modules = adapted_modules(empty, stack, layers, adapter)
    by_layer = trained_by_layer(empty, stack, layers, adapter)
    parameters = f", {sum(by_layer):,} parameters" if by_layer else ""
    resolved = {
        "model": model.name,
        "data": f"{data.data}, {count} of {len(table.rows)} rows",
        "columns": table.described(),
        "held back": _held_back(watch, table, watched),
        "layers": which,
        "adapters": f"{settings.method} on {len(modules)} modules{parameters}",
        "modules": ", ".join(modules),
        "strategy": settings.strategy,
        "epochs": settings.num_epochs,
        "steps": settings.steps(count),
        "learning rate": settings.learning_rate,
        "output": str(output),
    }
    if dry_run:
        console.say(o.listed(resolved))
        console.result(resolved)
        return
    told = f"; {resolved['adapters']}" if ratio is None else ""
    console.say(f"{resolved['columns']}\nlayers: {which}{told}\nlearning rate: {settings.learning_rate:g}{by_rule}")
    if watch.hold_back is not None:
        console.say(f"held back: {resolved['held back']}")
    loaded = load_model(model, table.kind, max(1, len(classes)), seed, bool(table.columns.image))
    encoder = encoder_of(data, table, classes, loaded.tokenizer, loaded.processor, loaded.model.config)
    if chosen is None and ratio is None:
        from layersift.records.by_hand import by_hand

        chosen = by_hand(loaded.name, loaded.revision, stack, layers, describe(trained), "all layers")
    elif chosen is None:
        from layersift.select.choose import select
        from layersift.select.sample import sample_table

        sample = sample_table(trained, encoder, choosing)
        with console.stage("reading representations", len(sample.examples)) as progress:
            chosen = select(loaded, sample, choosing, progress=progress)
        console.say(f"layers {chosen.mask} ({chosen.rule})")
    encoded = encode_sample(trained, encoder, settings.max_samples, seed)
    if encoded.notice:
        console.say(encoded.notice)
    rows = TrainingData(encoder, encoded.examples, describe(trained, encoded.notice))
    most_tokens = settings.batch_size * max(len(example) for example in encoded.examples)
    watching = _watch(watch, (trained, watched), encoded.examples, encoder, loaded.pad_id, most_tokens, console)
    with console.stage("training", settings.steps(len(encoded.examples)), "steps") as progress:
        record = train_adapters(loaded, rows, chosen, settings, place, seed=seed, progress=progress, watch=watching)
    _tell(record, output, console)
    console.result(to_json(record))


def _given(selection: Path | None, ratio: float | None) -> Selection | None:
    """The selection that is given, if one is.

    Raises:
        LayersiftError: so is a ratio.
    """
    from layersift.errors import LayersiftError
    from layersift.records.selection import Selection

    if selection is not None and ratio is not None:
        raise LayersiftError(
            "give --selection FILE, or --ratio 0.5 to have the layers chosen here: one of them, or none for all layers"
        )
    return Selection.load(selection) if selection is not None else None


def _scored_on(selection: Selection, table: Table) -> bool:
    """Whether scores on these rows chose the layers."""
    return bool(selection.metric) and selection.data.fingerprint == f"sha256:{table.fingerprint}"


def _sides(table: Table, watch: WatchSettings, seed: int) -> tuple[Table, Table | None]:
    """The rows to train on, and those to score the model on while it trains."""
    from layersift.data.split import split_off
    from layersift.data.table import read_table, require_rows

    if watch.hold_back is not None:
        trained, held_back = split_off(table, watch.hold_back, seed, by_class=True)
        require_rows(trained)
        return trained, held_back
    if watch.eval_data is not None:
        return table, read_table(watch.eval_data, table.columns, table.kind, watch.eval_split)
    return table, None


def _held_back(watch: WatchSettings, table: Table, watched: Table | None) -> str:
    """How the data were split, for people."""
    from layersift.data.split import read_alike

    if watch.hold_back is None or watched is None:
        return "none"
    alike = read_alike(table)
    pairs = f"; of rows that read alike ({alike} more than one) all are on one side" if alike else ""
    return f"{len(watched.rows)} of {len(table.rows)} rows{', of every class' * bool(table.columns.label)}{pairs}"


def _watch(
    settings: WatchSettings,
    sides: tuple[Table, Table | None],
    trained_examples: Sequence[Example],
    encoder: Encoder,
    pad_id: int,
    most_tokens: int,
    console: Console,
) -> Watch:
    """How the training is watched, on rows beside those it is trained on if there are some."""
    from dataclasses import replace

    from layersift.data.encode import encode_sample
    from layersift.evaluation.held_back import Split, conclude_on
    from layersift.evaluation.judging import watch_of

    trained, watched = sides
    # A terminal has the bar; a log has lines now and then.
    tell = console.say if watched is not None or not console.err.is_terminal else None
    if watched is None:
        return watch_of(settings, (), encoder, pad_id, most_tokens, tell)
    encoded = encode_sample(watched, encoder, None, 0)
    if encoded.notice:
        console.say(f"{settings.eval_data or 'held back'}: {encoded.notice}")
    watch = watch_of(settings, encoded.examples, encoder, pad_id, most_tokens, tell)
    if settings.hold_back is None:
        return watch
    split = Split(settings.hold_back, trained, trained_examples, watched, encoded)
    chose = settings.patience is not None
    return replace(watch, conclude=conclude_on(split, encoder, pad_id, most_tokens, chose_the_stop=chose))


def _tell(record: RunRecord, output: Path, console: Console) -> None:
    """What a training came to."""
    peak = f", peak memory {record.peak_memory_bytes / 2**20:,.0f} MiB" if record.peak_memory_bytes is not None else ""
    console.say(
        f"{record.steps} steps in {record.train_seconds:.1f} s{peak}, {record.trainable_parameters:,} trained "
        f"parameters, mean loss {record.train_loss:.4f}\nwritten to {output}"
    )
    if record.stopped is not None:
        console.say(f"kept is {record.stopped}")
    if record.held_back is not None:
        _tell_held_back(record.held_back, output, console)
    for notice in record.notices:
        console.say(f"note: {notice}")


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
