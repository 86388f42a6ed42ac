"""`layersift train`: adapters on the selected layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def train(
    model: o.Model,
    data: o.Data,
    selection: Annotated[Path, typer.Option(help="The selection file: which layers carry adapters.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory to write; must not exist.")],
    task: o.Task = None,
    text_column: o.TextColumn = None,
    text_pair_column: o.TextPairColumn = None,
    label_column: o.LabelColumn = None,
    prompt_column: o.PromptColumn = None,
    response_column: o.ResponseColumn = None,
    messages_column: o.MessagesColumn = None,
    image_column: o.ImageColumn = None,
    choices_column: o.ChoicesColumn = None,
    split: o.Split = "train",
    max_length: o.MaxLength = 512,
    chat_template: o.ChatTemplate = None,
    max_samples: Annotated[int | None, typer.Option(help="Train on that many samples, drawn at random. [all]")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak rate. [5e-4 with a classification head, 2e-4 for text]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples a forward pass.")] = 16,
    gradient_accumulation: Annotated[int, typer.Option(help="Forward passes an optimizer step.")] = 1,
    method: Annotated[
        str, typer.Option(help="lora, pissa, eva, dora, ..., a PEFT type, or full: docs/methods.md.")
    ] = "lora",
    method_option: Annotated[
        list[str] | None, typer.Option(help="key=value: a further field of the method's PEFT config.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters, where the method has one.")] = 8,
    rank_of: Annotated[
        list[str] | None, typer.Option(help="WHAT=rank: of attention, mlp, a module's name, or a layer's index.")
    ] = None,
    alpha: Annotated[int, typer.Option(help="LoRA alpha; updates are scaled by alpha / rank.")] = 16,
    dropout: Annotated[float, typer.Option(help="Dropout in the adapters.")] = 0.0,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="Learning-rate schedule, by transformers' name.")] = "linear",
    warmup_ratio: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="bf16 or fp16: automatic mixed precision.")] = None,
    prefix_cache: Annotated[
        str,
        typer.Option(
            help="Keep what the frozen blocks below the first trained one give: in memory (auto), not (off), or in a "
            "directory, which later trainings share."
        ),
    ] = "auto",
    prefix_dropout: Annotated[
        bool, typer.Option(help="Draw dropout in those blocks, too; without it they can be kept.")
    ] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Carry on from the last checkpoint.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also save the model with the adapters merged in.")] = False,
    revision: o.Revision = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    trust_remote_code: o.TrustRemoteCode = False,
    seed: o.Seed = 0,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train adapters on the selected layers of MODEL and nowhere else."""
    flags = dict(locals())
    from dataclasses import asdict, fields

    from layersift.adapt.inspection import adapted_modules, trained_by_layer
    from layersift.adapt.ranks import with_ranks
    from layersift.adapt.targets import stack_of
    from layersift.load.models import empty_model, load_model
    from layersift.load.task import encode_sample
    from layersift.select.sample import describe
    from layersift.select.selection import Selection
    from layersift.train.fit import require_trainable, require_writer
    from layersift.train.fit import train as train_adapters
    from layersift.train.settings import TrainSettings

    from .screen import Screen

    screen = Screen(quiet, json)
    flags["method_options"] = o.key_values(method_option or [], "--method-option")
    flags["ranks"] = o.key_values(rank_of or [], "--rank-of")
    settings = TrainSettings(**{f.name: flags[f.name] for f in fields(TrainSettings)})
    require_trainable(output, resume)
    chosen = Selection.load(selection)
    source, given = o.model_source(model, flags), o.data_settings(flags)
    table = given.read()
    classes = given.encoder(table, None).classes
    count = min(max_samples or len(table.rows), len(table.rows))
    adapter = settings.adapter(table.kind, settings.steps(count))
    empty = empty_model(source, table.kind)
    require_writer(empty, table.kind, model)
    stack = stack_of(empty, chosen)
    if adapter is not None:
        adapter = with_ranks(empty, stack, chosen.selected_layers, adapter, settings.ranks)
    modules = adapted_modules(empty, stack, chosen.selected_layers, adapter)
    by_layer = trained_by_layer(empty, stack, chosen.selected_layers, adapter)
    parameters = f", {sum(by_layer):,} parameters" if by_layer else ""
    resolved = {
        "model": model,
        "data": f"{data}, {count} of {len(table.rows)} rows",
        "columns": table.described(),
        "layers": f"{chosen.mask} ({chosen.rule})",
        "adapters": f"{method} on {len(modules)} modules{parameters}",
        "modules": ", ".join(modules),
        "steps": settings.steps(count),
        "learning rate": settings.rate(table.kind),
        "output": str(output),
    }
    if dry_run:
        screen.say(o.plan(resolved))
        screen.result(resolved)
        return
    screen.say(f"{resolved['columns']}; layers {resolved['layers']}; {resolved['adapters']}")
    loaded = load_model(source, table.kind, max(1, len(classes)), seed, bool(table.columns.image))
    encoder = given.encoder(table, loaded.tokenizer, loaded.processor, loaded.seq2seq)
    encoded = encode_sample(table, encoder, max_samples, seed)
    if notice := encoded.notice(encoder.limit()):
        screen.say(notice)
    with screen.stage("training", settings.steps(len(encoded.examples)), "steps") as progress:
        record = train_adapters(
            loaded,
            source,
            encoder,
            encoded.examples,
            describe(table),
            chosen,
            settings,
            output,
            seed=seed,
            resume=resume,
            merge=merge,
            progress=progress,
        )
    peak = f", peak memory {record.peak_memory_bytes / 2**20:,.0f} MiB" if record.peak_memory_bytes is not None else ""
    screen.say(
        f"{record.steps} steps in {record.train_seconds:.1f} s{peak}, {record.trainable_parameters:,} trained "
        f"parameters, mean loss {record.train_loss:.4f}\nwritten to {output}"
    )
    screen.result(asdict(record))
