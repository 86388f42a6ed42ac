"""`layersift export`: layers and their training in another trainer's own words, or an adapter for servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layersift.config.recipe import ModelSource
from layersift.config.train import ExportSettings, TrainSettings

from . import options as o
from .flags import with_settings

if TYPE_CHECKING:
    from layersift.records.selection import Selection

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
    spectrum: Annotated[
        float | None,
        typer.Option(help="Without SOURCE: that share of each kind of module, the most signal-to-noise first."),
    ] = None,
    unfreeze: Annotated[
        bool, typer.Option("--unfreeze", help="Of --spectrum: train these modules themselves, for axolotl or trl.")
    ] = False,
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
    from layersift.errors import AdapterError, LayersiftError
    from layersift.export.hyperparameters import SPELLINGS
    from layersift.export.read_config import Existing, read_existing, settings_of
    from layersift.export.source import Source, place, read_source
    from layersift.export.text import as_text
    from layersift.export.text import into as put_into
    from layersift.export.trainers import find_trainer, fragment_for
    from layersift.files import write_text

    from .console import Console, next_step

    console = Console(quiet, json)
    _require_one_source(source, layers, spectrum, model)
    if unfreeze:
        _unfreeze(to, ModelSource(str(model), trust_remote_code=trust_remote_code), spectrum or 0.0, output, console)
        return
    if to == "serving":
        if source is None:
            raise LayersiftError("--to serving needs the directory of a run or an adapter, not layers")
        _serve(source, output, console)
        return
    trainer, spelling = find_trainer(to), SPELLINGS[to]
    if source is not None:
        given = read_source(source, model, trust_remote_code)
        where = ModelSource(model or given.selection.model, trust_remote_code=trust_remote_code)
    else:
        where = ModelSource(str(model), trust_remote_code=trust_remote_code)
        given = Source(replace(_chosen(where, layers, spectrum, settings.rank), model=where.name))
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


def _require_one_source(source: Path | None, layers: str | None, spectrum: float | None, model: str | None) -> None:
    """Refuse no word, or more than one, on which layers are meant."""
    from layersift.errors import LayersiftError

    given = sum(one is not None for one in (source, layers, spectrum))
    if given == 0 or (source is None and model is None):
        raise LayersiftError("give a selection file, or --layers last:8 or --spectrum 0.25 with --model MODEL")
    if given > 1:
        raise LayersiftError("give a selection file, --layers or --spectrum, one of them")


def _chosen(model: ModelSource, layers: str | None, spectrum: float | None, rank: int | None) -> Selection:
    """The layers that are named, or the modules of the most signal, for which the model is loaded."""
    from layersift.models.load import empty_model, load_model
    from layersift.models.stacks import find_stack
    from layersift.records.selection import Selection
    from layersift.select.modules import spectrum_selection

    empty = empty_model(model)
    if spectrum is None:
        return Selection.of_layers(empty, str(layers))
    loaded = load_model(model, "text" if empty.can_generate() else "classification")
    return spectrum_selection(loaded, find_stack(loaded.model), spectrum, rank or TrainSettings.rank)


def _unfreeze(to: str, model: ModelSource, spectrum: float, output: Path | None, console: Console) -> None:
    """Write the names of parameters that are trained themselves."""
    from layersift.export.source import require_names, unfrozen_text
    from layersift.files import write_text
    from layersift.models.load import empty_model
    from layersift.select.modules import parameter_names

    require_names(to)
    selection = replace(_chosen(model, None, spectrum, None), model=model.name)
    names = parameter_names(empty_model(model), selection)
    text = unfrozen_text(to, names, selection)
    if output is not None:
        write_text(output, text, new=True)
        console.say(f"{len(names)} parameters; written to {output}")
    else:
        console.say(text.removesuffix("\n"))
    console.result({"to": to, "layers": list(selection.selected_layers), "unfrozen": names, "text": text})


def _serve(adapter: Path, output: Path | None, console: Console) -> None:
    """Make the directory that servers load."""
    from layersift.errors import LayersiftError
    from layersift.export.publish import for_serving

    from .console import next_step

    if output is None:
        raise LayersiftError("--to serving writes a directory; give --output")
    modules = for_serving(adapter, output)
    console.say(f"{len(modules)} modules by their full names; written to {output}")
    console.say(next_step("serve it, give the server the directory", output))
    result: dict[str, Any] = {"to": "serving", "adapted": list(modules), "output": str(output)}
    console.result(result)
