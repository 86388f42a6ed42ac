"""`layersift select`: which layers should carry adapters for these data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from layersift.select.selection import Selection
    from layersift.select.settings import SelectSettings

    from .screen import Screen

DOMINATED = 0.5  # share of the variance from which on a ranking follows one dimension


def select(
    model: o.Model,
    data: o.Data,
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
    ratio: Annotated[float | None, typer.Option(help="Share of the layers to select, rounded down. [0.5]")] = None,
    top_n: Annotated[int | None, typer.Option(help="Number of layers to select.")] = None,
    budget_params: Annotated[
        str | None, typer.Option(help="As many layers as so many trained parameters allow: 2M, 800k, ...")
    ] = None,
    method: Annotated[
        str, typer.Option(help="What --budget-params and --objective count: see `layersift train`.")
    ] = "lora",
    rank: Annotated[int, typer.Option(help="The same: rank of the adapters.")] = 8,
    target_modules: Annotated[str | None, typer.Option(help="The same: modules that carry them.")] = None,
    position: Annotated[
        str | None, typer.Option(help="first, last, last-content, mean or response-mean. [by the kind of task]")
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="What ranks the layers, see `layersift criteria`: cka, fisher, cka@last, rules.py:mine.")
    ] = "cka",
    threshold: Annotated[
        float | None, typer.Option(help="Instead of a number of layers, those that score beyond it.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="time=0.6 or memory=0.5: the most important layers within that share of all layers' cost."),
    ] = None,
    probe_steps: Annotated[
        int, typer.Option(help="Optimizer steps that criteria may take which train (lora-drop, pilot).")
    ] = 60,
    until_stable: Annotated[
        float | None,
        typer.Option(help="Stop reading samples once the selection is decided with this confidence, such as 0.95."),
    ] = None,
    max_samples: Annotated[int, typer.Option(help="Samples to read, drawn at random.")] = 128,
    tower: Annotated[
        str | None,
        typer.Option(help="encoder, decoder, language or vision, of several; encoder+decoder: both in one ranking."),
    ] = None,
    compat: Annotated[str | None, typer.Option(help="paper: exactly the published scripts' selection.")] = None,
    picture: Annotated[str | None, typer.Option(help="Also draw the importances into this .png or .svg.")] = None,
    revision: o.Revision = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    trust_remote_code: o.TrustRemoteCode = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read a model larger than memory: one block at a time, from its files.")
    ] = False,
    seed: o.Seed = 0,
    output: o.Output = None,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Rank the layers of MODEL by what each does to the data, and select the most important."""
    flags = dict(locals())
    from dataclasses import fields
    from pathlib import Path

    from layersift.adapt.inspection import layer_costs
    from layersift.compare.report import draw_importance, require_picture
    from layersift.files import require_new
    from layersift.load.blocks import choose_stack, find_stacks
    from layersift.load.models import empty_model, load_model
    from layersift.select.choose import select as select_layers
    from layersift.select.sample import default_position, sample_table
    from layersift.select.settings import SelectSettings
    from layersift.train.settings import TrainSettings

    from .screen import Screen

    screen = Screen(quiet, json)
    settings = SelectSettings(**{f.name: flags[f.name] for f in fields(SelectSettings)})
    for path in (output, Path(picture) if picture else None):
        if path is not None:
            require_new(path, "select")
    if picture is not None:
        require_picture(Path(picture))
    source, given = o.model_source(model, flags), o.data_settings(flags)
    table = given.read()
    encoder = given.encoder(table, None)
    empty = empty_model(source, table.kind)
    stack = choose_stack(find_stacks(empty), tower)
    trained = TrainSettings(method=method, rank=rank, target_modules=target_modules)
    adapter = trained.adapter(table.kind, 1, encoder.seq2seq)
    costs = () if budget_params is None else layer_costs(empty, stack, adapter)
    resolved = {
        "model": model,
        "blocks": f"{stack.pattern}, {stack.num_layers} ({stack.tower})",
        "data": f"{data}, {len(table.rows)} rows",
        "columns": table.described(),
        "samples": f"{min(max_samples, len(table.rows))} (seed {seed})",
        "position": "as published" if compat else position or default_position(table.kind, stack),
        "criterion": "cka-biased" if compat else criterion,
        "layers": f"{_wanted(settings, stack.num_layers)} of {stack.num_layers}",
        "output": str(output or "the screen"),
    }
    if dry_run:
        screen.say(o.plan(resolved))
        screen.result(resolved)
        return
    screen.say(f"{resolved['columns']}; blocks: {resolved['blocks']}")
    loaded = load_model(source, table.kind, max(1, len(encoder.classes)), seed, bool(table.columns.image))
    sample = sample_table(table, given.encoder(table, loaded.tokenizer, loaded.processor, loaded.seq2seq), settings)
    if sample.notice:
        screen.say(sample.notice)
    with screen.stage("reading representations", len(sample.examples)) as progress:
        selection = select_layers(
            loaded.model,
            sample,
            settings,
            padding=loaded.pad_id,
            name=model,
            revision=loaded.revision,
            layer_costs=costs,
            adapter=adapter,
            progress=progress,
        )
    if picture is not None:
        draw_importance(selection, Path(picture))
    _show(selection, screen)
    if output is not None:
        selection.save(output)
        screen.say(f"written to {output}")
    screen.result(selection.to_json())


def _wanted(settings: SelectSettings, num_layers: int) -> str:
    if settings.threshold is not None:
        return f"those beyond {settings.threshold}"
    if settings.objective is not None:
        return f"within {settings.objective}"
    from layersift.select.settings import how_many

    return str(how_many(settings, num_layers) or f"within {settings.budget_params}")


def _show(selection: Selection, screen: Screen) -> None:
    screen.table(_table(selection))
    where = f" at {selection.position}" if selection.position else ""
    screen.say(
        f"{selection.mask}  ({selection.rule}; {selection.metric}{where}, "
        f"{selection.num_samples} samples, {sum(selection.seconds.values()):.1f} s)"
    )
    for line in _how_sure(selection):
        screen.say(line)
    if warning := _warning(selection):
        screen.say(warning)


def _table(selection: Selection) -> list[list[str]]:
    """A row a layer: its importance, how sure it is, the largest dimension's share, whether it is selected."""
    read = any(share is not None for share in selection.top_dimension_share)
    header = ["layer", "importance"]
    if selection.confidence is not None:
        header += [f"{selection.confidence:.0%} interval", "in the top"]
    if read:
        header.append("largest dimension")
    rows = [[*header, "", ""]]
    largest = max((abs(v) for v in selection.importance if v is not None), default=1.0)
    for layer, value in enumerate(selection.importance):
        row = [str(layer), "undefined" if value is None else _figure(value, largest)]
        if selection.interval is not None and selection.membership is not None:
            between = selection.interval[layer]
            row.append("-" if between is None else " to ".join(_figure(edge, largest) for edge in between))
            row.append(f"{selection.membership[layer]:.0%}")
        if read:
            share = selection.top_dimension_share[layer]
            row.append("-" if share is None else f"{share:.0%}")
        chosen = "selected" if layer in selection.selected_layers else ""
        rows.append([*row, chosen, selection.undefined.get(layer, "")])
    return rows


def _how_sure(selection: Selection) -> list[str]:
    lines = []
    if stop := selection.until_stable:
        word = "decided" if stop["decided"] else "not decided"
        lines.append(f"{word} at {stop['confidence']:.0%} after {stop['samples']} of {stop['at_most']} samples")
    if selection.membership is not None and selection.confidence is not None:
        open_ = [i for i, p in enumerate(selection.membership) if max(p, 1 - p) < selection.confidence]
        if open_:
            lines.append(f"other samples might have decided otherwise on layers {_ranges(open_)} ('in the top')")
    return lines


def _figure(value: float, largest: float) -> str:
    """Four decimals, or four digits where all values are small."""
    return f"{value:.4f}" if largest >= 0.01 else f"{value:.3e}"


def _warning(selection: Selection) -> str | None:
    """Where the importances follow a single outlier dimension."""
    shares = enumerate(selection.top_dimension_share)
    dominated = [i for i, share in shares if share is not None and share > DOMINATED]
    if not dominated:
        return None
    return (
        f"mind: one dimension holds more than {DOMINATED:.0%} of the variance behind layers {_ranges(dominated)}; "
        "the importances there speak of that dimension. Compare with another --position."
    )


def _ranges(layers: list[int]) -> str:
    """``3-5, 8`` for 3, 4, 5, 8."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
