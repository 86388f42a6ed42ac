"""`layersift export`: layers and their training in another trainer's own words, or an adapter for servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layersift.config.train import ExportSettings

from . import options as o
from .flags import with_settings

if TYPE_CHECKING:
    from .console import Console


@with_settings
def export(
    to: Annotated[
        str,
        typer.Option(help="peft, trl, axolotl, llamafactory, unsloth, ms-swift, nemo, mlx, or serving."),
    ],
    settings: ExportSettings,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="A selection file, or the directory of `advise` or a run, with how it trains; for serving, a run "
            "or an adapter's directory.",
        ),
    ] = None,
    layers: o.Layers = None,
    into: Annotated[
        Path | None, typer.Option(help="A trainer's YAML config: the result is it with these layers; comments stay.")
    ] = None,
    output: o.Output = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the model is now. [as the selection says; needed by --layers]", metavar="MODEL"),
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Say SOURCE in another trainer's words: exactly these layers, resolved without loading weights.

    The result goes to standard output, or to --output.
    """
    from layersift.config.fields import read_yaml
    from layersift.config.inputs import ModelSource
    from layersift.errors import AdapterError, LayersiftError
    from layersift.export.existing import Existing, read_existing, settings_of
    from layersift.export.hyperparameters import SPELLINGS
    from layersift.export.placement import place
    from layersift.export.source import Source, read_source
    from layersift.export.text import as_text
    from layersift.export.text import into as put_into
    from layersift.export.trainers import find_trainer, fragment_for
    from layersift.files import write_text
    from layersift.models.load import empty_model
    from layersift.records.selection import Selection

    from .console import Console, next_step

    console = Console(quiet, json)
    if source is None and (layers is None or model is None):
        raise LayersiftError("give a selection file, or --layers last:8 with --model MODEL")
    if source is not None and layers is not None:
        raise LayersiftError("give a selection file or --layers, not both")
    if to == "serving":
        if source is None:
            raise LayersiftError("--to serving needs the directory of a run or an adapter, not --layers")
        _serve(source, output, console)
        return
    trainer, spelling = find_trainer(to), SPELLINGS[to]
    if source is not None:
        given = read_source(source, model, trust_remote_code)
        where = ModelSource(model or given.selection.model, trust_remote_code=trust_remote_code)
    else:
        where = ModelSource(str(model), trust_remote_code=trust_remote_code)
        given = Source(replace(Selection.of_layers(empty_model(where), str(layers)), model=where.name))
    selection, shape = given.selection, given.shape(settings)
    existing = read_existing(trainer, into, shape, selection) if into is not None else Existing()
    try:
        placement = place(selection, where, settings_of(shape, existing, given.method_options()), existing.wanted)
    except AdapterError as error:
        if into is None:
            raise
        if existing.wanted is None or not existing.wanted.key:
            raise AdapterError(f"{into}: {error}") from None
        raise AdapterError(f"{into}: {existing.wanted.key}: {error}; --target-modules names others") from None
    fragment = fragment_for(trainer, placement)
    there = None if into is None else read_yaml(into)
    keys = {} if given.training is None else spelling.spelt(given.training, there)
    if given.training is not None:
        fragment |= spelling.quantized.get(given.training.quantization or "", {})
    said = [] if given.training is None else spelling.unsaid(given.training, trainer.title)
    notes = [*given.notes, *said, *existing.notes]
    if into is None:
        text = as_text(trainer, placement, fragment, keys, said)
    else:
        text, changed = put_into(into.read_text(encoding="utf-8"), into, trainer, placement, keys | fragment, said)
        notes += changed
    for note in notes:
        console.warn(note)
    adapted = [*placement.modules, *placement.parameters]
    told = ", ".join(map(str, selection.selected_layers))
    if output is not None:
        write_text(output, text, new=True)
        console.say(f"{len(adapted)} modules of layers {told} for {trainer.title}; written to {output}")
        if trainer.call:
            console.say(next_step(f"train with {trainer.title}, paste into your script", output))
        elif into is None:
            from_ = [source] if source is not None else [*(["--layers", layers] if layers else []), "--model", model]
            own = ["layersift", "export", *from_, "--to", to, "--into", "CONFIG.yaml", "-o", "NEW.yaml"]
            console.say(next_step("put it into a config of yours", *own))
        else:
            console.say(next_step(f"train, give {trainer.title} the config", output))
    else:
        console.say(text.removesuffix("\n"))
    console.result(
        {
            "to": to,
            "layers": list(selection.selected_layers),
            "adapted": adapted,
            "trained_parameters": placement.trained,
            "fragment": {**keys, **fragment},
            "notes": notes,
            "text": text,
        }
    )


def _serve(adapter: Path, output: Path | None, console: Console) -> None:
    """Make the directory that servers load."""
    from layersift.errors import LayersiftError
    from layersift.export.serving import for_serving

    from .console import next_step

    if output is None:
        raise LayersiftError("--to serving writes a directory; give --output")
    modules = for_serving(adapter, output)
    console.say(f"{len(modules)} modules by their full names; written to {output}")
    console.say(next_step("serve it, give the server the directory", output))
    result: dict[str, Any] = {"to": "serving", "adapted": list(modules), "output": str(output)}
    console.result(result)
