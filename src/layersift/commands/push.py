"""`layersift push`: a trained run to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output of `layersift train`.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the Hub; made where there is none.")],
    base_model: Annotated[
        str | None, typer.Option(help="The base model on the Hub, where RUN was trained on a local copy.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="What `layersift evaluate -o` wrote of RUN, for the card; may come again.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository for you alone.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be uploaded to --output instead.")
    ] = False,
    output: o.Output = None,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Put the adapters in RUN on the Hub, with a card of what was adapted and how to load it, and no local path."""
    from layersift.errors import LayersiftError
    from layersift.export.publish import push_to_hub, stage
    from layersift.files import new_directory

    from .console import Console, next_step

    console = Console(quiet, json)
    if dry_run and output is None:
        raise LayersiftError("--dry-run writes a directory; give --output")
    if output is not None:
        with new_directory(output, "push") as place:
            stage(run, place, repo, base_model, evaluation or [])
        console.say(f"what would be uploaded is in {output}")
        base = ["--base-model", base_model] if base_model else []
        console.say(next_step("upload it", "layersift", "push", run, repo, *base))
        console.result({"repo": repo, "output": str(output)})
        return
    address = push_to_hub(run, repo, base_model=base_model, evaluations=evaluation or [], private=private)
    console.say(f"uploaded to {address}")
    console.say(next_step("load it, see its card", address))
    console.result({"repo": repo, "address": address})
