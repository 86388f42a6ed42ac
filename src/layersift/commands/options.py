"""Flags that several subcommands share, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layersift.errors import LayersiftError

if TYPE_CHECKING:
    from layersift.load.models import ModelSource
    from layersift.load.task import DataSettings


def _from_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a YAML file's values as defaults: flags win over them."""
    if path is None:
        return None
    from layersift.compare.recipe import read_yaml, unknown_key

    values = {str(key).replace("-", "_"): value for key, value in read_yaml(path).items()}
    known = {str(parameter.name) for parameter in context.command.params} - {"config"}
    for key in values:
        if key not in known:
            raise unknown_key(str(path), key, known)
    context.default_map = {**(context.default_map or {}), **values}
    return path


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A local directory, a Hub id or a .gguf file.")]
Data = Annotated[
    str,
    typer.Option(
        help="A .jsonl, .json, .csv or .parquet file, a directory saved by `datasets` or of images, or a Hub id."
    ),
]
Task = Annotated[str | None, typer.Option(help="classification, regression, instruction or text; else found out.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text.")]
TextPairColumn = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the class, or of the number to predict.")]
PromptColumn = Annotated[str | None, typer.Option(help="Column of the prompt.")]
ResponseColumn = Annotated[str | None, typer.Option(help="Column of the response.")]
MessagesColumn = Annotated[str | None, typer.Option(help="Column of chat messages.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the image: a path, or encoded bytes.")]
ChoicesColumn = Annotated[str | None, typer.Option(help="Column of a list of answers; the response names one.")]
Split = Annotated[str, typer.Option(help="Split of a directory or Hub dataset.")]
MaxLength = Annotated[int, typer.Option(help="Longest sequence in tokens; the rest is cut off.")]
ChatTemplate = Annotated[str | None, typer.Option(help="A Jinja file, instead of the model's own chat template.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub model.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; else the first GPU, or the CPU.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that a model brings.")]
Seed = Annotated[int, typer.Option(help="Draws samples, first weights and the order of training.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result goes; must not exist.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A YAML file of flags by name (max_samples: 64); flags win.", callback=_from_config, is_eager=True
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]

SOURCE_FLAGS = ("revision", "dtype", "device", "trust_remote_code", "stream")
DATA_FLAGS = (
    "data",
    "task",
    "text_column",
    "text_pair_column",
    "label_column",
    "prompt_column",
    "response_column",
    "messages_column",
    "image_column",
    "choices_column",
    "split",
    "max_length",
    "chat_template",
)


def model_source(model: str, flags: dict[str, Any]) -> ModelSource:
    """The model as the flags describe it."""
    from layersift.load.models import ModelSource

    return ModelSource(model, **{name: flags[name] for name in SOURCE_FLAGS if name in flags})


def data_settings(flags: dict[str, Any]) -> DataSettings:
    """The data as the flags describe them."""
    from layersift.load.task import DataSettings

    return DataSettings(**{name: flags[name] for name in DATA_FLAGS if name in flags})


def key_values(assignments: list[str], flag: str) -> dict[str, Any]:
    """The ``key=value`` pairs of a flag, values read as YAML.

    Raises:
        LayersiftError: one of another form.
    """
    import yaml

    pairs = [assignment.partition("=") for assignment in assignments]
    for key, equals, value in pairs:
        if not key or not equals:
            raise LayersiftError(f"{flag} {key}{equals}{value}: expected key=value")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def plan(values: dict[str, Any]) -> str:
    """A resolved plan as aligned lines."""
    width = max(len(name) for name in values)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())
