"""`layersift export`: the selection in another trainer's own words, or an adapter for servers."""

from __future__ import annotations

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
    source: Annotated[
        Path,
        typer.Argument(metavar="SELECTION", help="A selection file; for serving, a run or an adapter's directory."),
    ],
    to: Annotated[
        str,
        typer.Option(help="peft, trl, axolotl, llamafactory, unsloth, ms-swift, nemo, mlx, or serving."),
    ],
    settings: ExportSettings,
    into: Annotated[
        Path | None, typer.Option(help="A trainer's YAML config: the result is it with these layers; comments stay.")
    ] = None,
    output: o.Output = None,
    model: Annotated[
        str | None, typer.Option(help="Where the model is now. [as the selection says]", metavar="MODEL")
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Say SELECTION in another trainer's words: exactly these layers, resolved without loading weights.

    The result goes to standard output, or to --output.
    """
    from layersift.config.inputs import ModelSource
    from layersift.errors import AdapterError, LayersiftError
    from layersift.export.existing import Existing, read_existing, settings_of
    from layersift.export.placement import place
    from layersift.export.text import as_text
    from layersift.export.text import into as put_into
    from layersift.export.trainers import find_trainer, fragment_for
    from layersift.files import write_text
    from layersift.records.selection import Selection

    from .console import Console

    console = Console(quiet, json)
    if to == "serving":
        _serve(source, output, console)
        return
    trainer = find_trainer(to)
    if source.is_dir():
        raise LayersiftError(f"{source} is a directory; a selection file is needed, of a run its selection.json")
    selection = Selection.load(source)
    existing = read_existing(trainer, into, settings, selection) if into is not None else Existing()
    where = ModelSource(model or selection.model, trust_remote_code=trust_remote_code)
    try:
        placement = place(selection, where, settings_of(settings, existing), existing.wanted)
    except AdapterError as error:
        if into is None:
            raise
        if existing.wanted is None or not existing.wanted.key:
            raise AdapterError(f"{into}: {error}") from None
        raise AdapterError(f"{into}: {existing.wanted.key}: {error}; --target-modules names others") from None
    fragment = fragment_for(trainer, placement)
    notes = list(existing.notes)
    if into is None:
        text = as_text(trainer, placement, fragment)
    else:
        text, changed = put_into(into.read_text(encoding="utf-8"), into, trainer, placement, fragment)
        notes += changed
    for note in notes:
        console.warn(note)
    adapted = [*placement.modules, *placement.parameters]
    layers = ", ".join(map(str, selection.selected_layers))
    if output is not None:
        write_text(output, text, new=True)
        console.say(f"{len(adapted)} modules of layers {layers} for {trainer.title}; written to {output}")
    else:
        console.say(text.removesuffix("\n"))
    console.result(
        {
            "to": to,
            "layers": list(selection.selected_layers),
            "adapted": adapted,
            "trained_parameters": placement.trained,
            "fragment": fragment,
            "notes": notes,
            "text": text,
        }
    )


def _serve(adapter: Path, output: Path | None, console: Console) -> None:
    """Make the directory that servers load."""
    from layersift.errors import LayersiftError
    from layersift.export.serving import for_serving

    if output is None:
        raise LayersiftError("--to serving writes a directory; give --output")
    modules = for_serving(adapter, output)
    console.say(f"{len(modules)} modules by their full names; written to {output}")
    result: dict[str, Any] = {"to": "serving", "adapted": list(modules), "output": str(output)}
    console.result(result)
