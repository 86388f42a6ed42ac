"""The command line: `layersift` or `python -m layersift`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from layersift._version import __version__
from layersift.errors import LayersiftError
from layersift.quiet import quieten_libraries

from .commands.benchmark import benchmark
from .commands.compare import compare
from .commands.criteria import criteria
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.inspect import inspect
from .commands.oracle import oracle
from .commands.recipes import recipes
from .commands.run import run
from .commands.schema import schema
from .commands.select import select
from .commands.sweep import sweep
from .commands.train import train

USAGE = 2

app = typer.Typer(
    name="layersift",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the layers that should carry the adapters for your task, train only those, and see whether it held.",
)
SUBCOMMANDS = (
    inspect,
    select,
    train,
    evaluate,
    benchmark,
    run,
    sweep,
    compare,
    oracle,
    criteria,
    recipes,
    schema,
    demo,
)
for subcommand in SUBCOMMANDS:
    app.command()(subcommand)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Whatever the user can mend is told in one line, with exit code 2."""
    quieten_libraries()
    try:
        code = app(standalone_mode=False)
    except LayersiftError as error:
        code = _complain(str(error))
    except OSError as error:  # no permission, a full disk
        code = _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    except Exception as error:
        # typer keeps its own copy of click, whose errors of usage have no public name.
        if not hasattr(error, "format_message"):
            raise
        code = _complain(error.format_message())
    sys.exit(code)


def _complain(message: str, code: int = USAGE) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code


if __name__ == "__main__":
    main()
