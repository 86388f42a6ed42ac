"""`layersift select`: which layers should carry adapters for these data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layersift.config.quantities import layers_told
from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.select import SelectSettings, how_many
from layersift.config.train import TrainSettings

from . import options as o
from .flags import with_settings, words_of

if TYPE_CHECKING:
    from layersift.records.selection import Selection

    from .console import Console


@with_settings
def select(
    model: ModelSource,
    data: DataSettings,
    settings: SelectSettings,
    method: Annotated[
        str, typer.Option(help="What --budget-params and --objective count: see `layersift train`.")
    ] = TrainSettings.method,
    rank: Annotated[int, typer.Option(help="The same: rank of the adapters.")] = TrainSettings.rank,
    target_modules: Annotated[str | None, typer.Option(help="The same: modules that carry them.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw the importances into this .png, .svg or .pdf.")
    ] = None,
    output: o.Output = None,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Rank the layers of MODEL by what each does to the data, and select the most important."""
    from layersift.draw import require_picture
    from layersift.files import write_json
    from layersift.processes import is_main_process, join_processes
    from layersift.report.comparison import write_importance
    from layersift.select.choose import select as choose
    from layersift.select.modules import ENERGY
    from layersift.select.sample import criterion_of, default_position
    from layersift.task import Task

    from .console import Console, next_step

    console = Console(quiet, json)
    criterion = criterion_of(settings)
    if picture is not None:
        require_picture(picture)
    trained = TrainSettings(method=method, rank=rank, target_modules=target_modules)
    task = Task.open(model, data, tower=settings.tower)
    table, stack = task.table, task.stack
    adapter = None
    if trained != TrainSettings() or settings.budget_params or settings.objective or settings.modules:
        adapter = task.adapter(trained)  # PEFT takes seconds to import
    costs = task.layer_costs(settings, adapter)
    position = "as published" if settings.compat else settings.position or default_position(table.kind, stack)
    resolved = {
        "model": model.name,
        "blocks": f"{stack.pattern}, {stack.num_layers} ({stack.tower})",
        "data": f"{data.data}, {len(table.rows)} rows",
        "columns": table.described(),
        "samples": f"{min(settings.max_samples, len(table.rows))} (seed {settings.seed})",
        "position": position,
        "criterion": ENERGY if settings.modules else criterion.name,
        "layers": f"{_wanted(settings, stack.num_layers)} of {stack.num_layers}",
        "output": str(output or "the screen"),
    }
    if dry_run:
        console.say(o.listed(resolved))
        o.say_how_to_do_it(console)
        console.result(resolved)
        return
    console.say(f"{resolved['columns']}; blocks: {resolved['blocks']}")
    with join_processes():
        loaded = task.load(settings.seed)
        sample = task.sample(settings)
        if sample.data.left_out:
            console.say(sample.data.left_out)
        with console.stage("reading representations", len(sample.examples)) as progress:
            selection = choose(loaded, sample, settings, layer_costs=costs, adapter=adapter, progress=progress)
    if not is_main_process():
        return
    if picture is not None:
        write_importance(selection, picture)
    _show(selection, console)
    if by_default := _by_default(settings, selection):
        console.say(f"by default: {', '.join(by_default)}; docs/results/defaults.md says what that rests on")
    if output is not None:
        write_json(output, selection.to_json(), new=True)
        console.say(f"written to {output}")
    chosen = (
        ["--selection", output] if output is not None else ["--layers", ",".join(map(str, selection.selected_layers))]
    )
    to_train = ["layersift", "train", *words_of(model, data), *chosen, "-o", "run"]
    console.say(next_step("train on these layers", *to_train))
    console.result(selection.to_json())


def _wanted(settings: SelectSettings, num_layers: int) -> str:
    if settings.threshold is not None:
        return f"those beyond {settings.threshold}"
    if settings.objective is not None:
        return f"within {settings.objective}"
    return str(how_many(settings, num_layers) or f"within {settings.budget_params}")


def _show(selection: Selection, console: Console) -> None:
    console.table(selection.rows())
    where = f" at {selection.position}" if selection.position else ""
    console.say(
        f"{selection.mask}  ({selection.rule}; {selection.metric}{where}, "
        f"{selection.num_samples} samples, {sum(selection.seconds.values()):.1f} s)"
    )
    for line in _how_sure(selection):
        console.say(line)
    if warning := _warning(selection):
        console.say(warning)


def _by_default(settings: SelectSettings, selection: Selection) -> list[str]:
    """What was chosen for the user, in words."""
    plain = SelectSettings()
    if settings.compat or settings.modules:
        return []
    said = [settings.criterion] if settings.criterion == plain.criterion else []
    said += [f"position {selection.position}"] if settings.position is None and selection.position else []
    said += ["half of the layers"] if settings.limits == plain.limits else []
    said += [f"at most {plain.max_samples} samples"] if settings.max_samples == plain.max_samples else []
    return said


def _how_sure(selection: Selection) -> list[str]:
    lines = []
    if stop := selection.until_stable:
        word = "decided" if stop.decided else "not decided"
        lines.append(f"{word} at {stop.confidence:.0%} after {stop.samples} of {stop.at_most} samples")
        if stop.needed is not None:
            lines[-1] += f"; if the scores stay as they are, about {stop.needed:,} would decide it"
        elif not stop.decided:
            lines[-1] += "; two layers at the edge score alike, and no number of samples would part them"
    if selection.resampled is not None:
        lines.append(f"intervals from halves of {selection.resampled} of the {selection.num_samples:,} samples, scaled")
    if selection.membership is not None and selection.confidence is not None:
        open_ = [i for i, p in enumerate(selection.membership) if max(p, 1 - p) < selection.confidence]
        if open_:
            lines.append(f"other samples might have decided otherwise on layers {layers_told(open_)} ('in the top')")
    return lines


def _warning(selection: Selection) -> str | None:
    """Where the importances follow a single outlier dimension."""
    from layersift.records.selection import DOMINATED, dominated

    layers = dominated(selection.top_dimension_share)
    if not layers:
        return None
    return (
        f"mind: one dimension holds more than {DOMINATED:.0%} of the variance behind layers {layers_told(layers)}; "
        "the importances there speak of that dimension. Compare with another --position."
    )
