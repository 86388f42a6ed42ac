"""`layersift prune`: a trained LoRA adapter cut down to what training moved furthest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from layersift.records.runs import Pruned

    from .console import Console


def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output of `layersift train`, or a LoRA of PEFT.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The smaller run; must not exist.")],
    params: Annotated[str | None, typer.Option(help="Keep so many parameters of LoRA's matrices: 1M, 800k.")] = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Keep so much that the adapter's file is no larger: 2MB, 500kB.")
    ] = None,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Keep the largest singular values of all trained updates within a budget, and rank the layers by them.

    Each module gets a rank of its own; a module without a large one is dropped. Nothing is trained again.
    """
    from layersift.config.quantities import byte_count, parameter_count
    from layersift.errors import LayersiftError
    from layersift.export.prune import Budget
    from layersift.export.prune import prune as prune_run

    from .console import Console

    console = Console(quiet, json)
    if (params is None) == (bytes_ is None):
        raise LayersiftError("give --params 1M or --bytes 2MB, one of them")
    budget = (
        Budget(parameters=parameter_count(params, "params"))
        if params is not None
        else Budget(bytes=byte_count(str(bytes_), "bytes"))
    )
    pruned = prune_run(run, budget, output)
    _tell(pruned, output, console)
    console.result({**pruned.to_json(), "output": str(output)})


def _tell(pruned: Pruned, output: Path, console: Console) -> None:
    """What was kept, and the layers by what training did to them."""
    from .console import next_step

    whole = f", and {pruned.whole_modules:,} of modules trained whole" if pruned.whole_modules else ""
    ranks = f"ranks {min(pruned.ranks.values())} to {max(pruned.ranks.values())}"
    console.say(
        f"kept {pruned.parameters:,} of {pruned.of_parameters:,} LoRA parameters{whole}: {len(pruned.ranks)} modules "
        f"at {ranks}, {len(pruned.dropped)} dropped\n"
        f"the updates differ from the trained ones by {pruned.relative_error:.1%} of their norm"
    )
    console.table(
        [
            ["layer", "fraction of the trained change"],
            *(["none" if layer < 0 else str(layer), f"{share:.3f}"] for layer, share in pruned.layers.items()),
        ]
    )
    console.say(f"written to {output}")
    console.say(next_step("see what that costs", "layersift", "evaluate", output, "--data", "FILE"))
