"""Flags that several subcommands share and that are no settings, and how a plan is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from layersift.config.fields import require_text
from layersift.config.select import rule_file
from layersift.errors import LayersiftError, unknown_key

TRAINER_FILE = "layersift.trainer_file"
TRUST = ("trust_remote_code", "allow_code_execution")  # what lets foreign code run


def _from_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a YAML file's values as defaults: flags win over them."""
    if path is None:
        return None
    from layersift.config.fields import read_yaml

    values = {str(key).replace("-", "_"): value for key, value in read_yaml(path).items()}
    known = {str(parameter.name) for parameter in context.command.params} - {"config"}
    for key in values:
        if key not in known:
            raise unknown_key(str(path), key, known)
    for key in TRUST:
        if values.get(key):
            raise LayersiftError(
                f"{path}: {key} counts only on the command line; leave it out here and give --{key.replace('_', '-')}"
            )
    for key, value in values.items():
        if value == "":
            raise LayersiftError(f"{path}: {key} is empty; give a value, or leave it away")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                require_text(f"{path}: {key}", text)
    for key, value in values.items():
        if isinstance(value, str) and rule_file(value) is not None:
            typer.echo(f"note: {path}: {key} {value} runs that file's Python code", err=True)
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _from_trainer(context: typer.Context, path: Path | None) -> Path | None:
    """Take what another trainer's config says as defaults: flags win over it, and so does --config."""
    if path is None:
        return None
    from layersift.export.read_config import read_trainer_file

    file = context.meta[TRAINER_FILE] = read_trainer_file(path)
    context.default_map = {**file.flags, **(context.default_map or {})}
    return path


def key_of(context: typer.Context, flag: str) -> str | None:
    """File and key of a value that another trainer's config gave; None where it did not."""
    file, source = context.meta.get(TRAINER_FILE), context.get_parameter_source(flag)
    if file is None or flag not in file.keys or (source is not None and source.name == "COMMANDLINE"):
        return None
    return f"{file.path}: {file.keys[flag]}"


def tell_trainer_file(context: typer.Context, console: Any) -> None:
    """Say what of another trainer's config was not read, and which flags win over it."""
    file = context.meta.get(TRAINER_FILE)
    if file is None:
        return
    for note in file.notes:
        console.warn(note)
    for flag, key in file.keys.items():
        source = context.get_parameter_source(flag)
        if flag in context.params and source is not None and source.name == "COMMANDLINE":
            name = "MODEL" if flag == "model" else f"--{flag.replace('_', '-')}"
            console.warn(f"{file.path}: {key} does not count; {name} does")
    console.say(f"{file.path} is read as a config of {file.title}")


Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; else the first GPU, or the CPU.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings; counts only here.")
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Draws samples, first weights and the order of training.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result goes; must not exist.")]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Without --selection: these layers, counted from 0, as in 20-27,31, last:8, first:4, every:2, or "
        "'encoder=8-11 decoder=0-11'."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A YAML file of flags by name (max_samples: 64); flags win.", callback=_from_config, is_eager=True
    ),
]
FromTrainer = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="A YAML config of Axolotl, LLaMA-Factory or TRL, which gives model, data and training; flags win.",
        callback=_from_trainer,
        is_eager=True,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")]
Forecast = Annotated[
    bool, typer.Option("--dry-run", help="Say how many trainings it would take, and how many FLOPs, and stop.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
# Of commands that carry out a recipe.
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file (docs/recipes.md), or a name from `layersift recipes`.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value or section.key=value, over what the recipe says.")
]
GridOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="A directory, from the current one; new, or of the same recipe and data, which is carried on. [the "
        "recipe's output]",
    ),
]
Jobs = Annotated[int, typer.Option(min=1, max=1024, help="Trainings at the same time, each in its own process.")]

On = Annotated[
    str | None,
    typer.Option(
        metavar="ray",
        help="Trainings as tasks of a Ray cluster: ray (RAY_ADDRESS's, or this machine's), ray://HOST:PORT, HOST:PORT.",
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        min=0, max=1024, help="With --on: GPUs of a node for each training; 0.5 shares one. [1 where there are any]"
    ),
]


def _set_threads(count: int | None) -> int | None:
    """Before torch is imported, which reads it, as the workers do."""
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    return count


Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        callback=_set_threads,
        help="Threads of each training. [as OMP_NUM_THREADS says, or a share of the cores]",
    ),
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Only try it out, in OUTPUT-smoke: tiny model, made-up rows, a few steps.")
]


def carried_out_by(jobs: int, on: str | None, threads: int | None, gpus: float | None) -> Any:
    """What carries trainings out: processes of this machine, or a cluster, which answers before anything is read.

    Raises:
        LayersiftError: there is no such cluster; or several processes were started, which share each training.
    """
    from layersift.processes import started

    if started() > 1 and (jobs != 1 or on is not None):
        raise LayersiftError(
            f"WORLD_SIZE says that {started()} processes were started, which share each training, one after the other; "
            "leave --jobs and --on away, or start one process"
        )
    if on is None:
        return jobs
    from layersift.experiment.ray_cluster import cluster_named

    return cluster_named(on, threads, gpus)


def foretell(forecast: Any, recipe: Any, console: Any) -> None:
    """Show what an experiment would take and where it would be kept, and do nothing of it."""
    console.say(f"would take {forecast}; output {recipe.output}; nothing was trained or written")
    say_how_to_do_it(console)
    console.result(forecast.to_json() | {"output": recipe.output})


def say_how_to_do_it(console: Any) -> None:
    """The last line of a dry run: the same command without that flag."""
    from .console import next_step

    console.say(next_step("do it", "layersift", *(word for word in sys.argv[1:] if word != "--dry-run")))


def listed(values: dict[str, Any]) -> str:
    """What a command is going to do, as aligned lines."""
    width = max(len(name) for name in values)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())
