"""`layersift doctor`: what is wrong with a run, an adapter or a model, from its files alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def doctor(
    place: Annotated[
        Path,
        typer.Argument(metavar="DIRECTORY", help="The output of `layersift train`, an adapter of PEFT, or a model."),
    ],
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Say from the files of DIRECTORY whether it trained and works, and what to do about each fault.

    The exit code is 1 where there is a fault.
    """
    from layersift.evaluation.findings import find

    from .console import Console, next_step

    console = Console(quiet, json)
    findings = find(place)
    for one in findings:
        console.say(f"{one.level:<5}  {one.subject}: {one.says}{f' -> {one.remedy}' if one.remedy else ''}")
    faults = sum(one.level == "fault" for one in findings)
    console.say(f"{faults} fault{'' if faults == 1 else 's'}")
    if not faults and (place / "layersift.json").is_file():
        console.say(next_step("judge it on other rows", "layersift", "evaluate", place, "--data", "FILE"))
    console.result({"schema_version": 1, "directory": str(place), "findings": [asdict(one) for one in findings]})
    if faults:
        raise typer.Exit(1)
