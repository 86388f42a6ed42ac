"""The command line: `layersift` or `python -m layersift`."""

from __future__ import annotations

import functools
import io
import os
import sys
import time
from typing import Annotated, Any, cast

import typer

from layersift.errors import LayersiftError, one_line, visible
from layersift.files import remedy_of
from layersift.processes import is_main_process, started
from layersift.progress import quieten_libraries
from layersift.provenance import command, versions

from .commands.advise import advise
from .commands.benchmark import benchmark
from .commands.compare import compare
from .commands.criteria import criteria
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.effects import RefusingCommand
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.help import SUMMARIES
from .commands.inspect import inspect
from .commands.oracle import oracle
from .commands.predict import predict
from .commands.prune import prune
from .commands.push import push
from .commands.recipes import recipes
from .commands.run import run
from .commands.schema import schema
from .commands.select import select
from .commands.sweep import sweep
from .commands.train import train

USAGE, FAULT, INTERRUPTED = 2, 1, 130  # exit codes: what the user can mend, what we have to, Ctrl-C
ANY_NUMBER = (
    "select",
    "train",
    "evaluate",
    "predict",
    "run",
    "inspect",
    "criteria",
    "recipes",
    "schema",
)  # of processes
GRACE = 3  # seconds, in which the main process says what all of them met
TRACEBACK = "LAYERSIFT_TRACEBACK"  # set: a fault of ours ends in Python's own report

app = typer.Typer(
    name="layersift",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Say what to train of a transformer within your memory and time, train it, and show what that cost.\n\n"
    "Example: layersift advise MODEL --data train.jsonl --time 0.6",
)
SUBCOMMANDS = (
    inspect,
    advise,
    select,
    train,
    evaluate,
    predict,
    doctor,
    export,
    prune,
    push,
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
    app.command(cls=RefusingCommand, short_help=SUMMARIES[subcommand.__name__])(subcommand)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo("\n".join(f"{package} {version}" for package, version in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it, and those it works with.")
    ] = False,
) -> None:
    if started() > 1 and context.invoked_subcommand not in ANY_NUMBER:
        raise LayersiftError(
            f"{context.invoked_subcommand} works in one process, and WORLD_SIZE says that {started()} were started; "
            "start it without torchrun or accelerate launch (select, train, evaluate, predict and run are shared among "
            "processes; compare has --jobs)"
        )


def main() -> None:
    """Run the command line. Whatever the user can mend is told in one line, with exit code 2."""
    quieten_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the screen's encoding lacks is spelled, not a fault
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _command()(standalone_mode=False)
        if code == INTERRUPTED:  # by newer versions of typer, which say nothing
            raise KeyboardInterrupt
    except LayersiftError as error:
        code = _complain(str(error))
    except BrokenPipeError:  # who reads the output has seen enough
        sys.stdout = None  # nor is the rest of it flushed
        code = 0
    except OSError as error:  # no permission, a full disk
        code = _complain(f"{error.filename or 'the system'}: {error.strerror or error}{remedy_of(error)}")
    except KeyboardInterrupt:
        again = f"this goes on: {command()} --resume" if _resumable() else "the same command goes on"
        code = _complain(f"interrupted; what is finished is kept, and {again}", INTERRUPTED)
    except Exception as error:
        # typer keeps its own copy of click, whose errors of usage have no public name.
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(cast(Any, error).ctx.get_help())
            code = 0
        elif hasattr(error, "format_message"):
            code = _complain(f"{error.format_message()}{_given(error)}")
        elif os.environ.get(TRACEBACK):
            raise
        else:
            code = _complain(
                f"layersift itself failed ({type(error).__name__}: {one_line(error)}); {TRACEBACK}=1 shows where, "
                "please report it",
                FAULT,
            )
    sys.exit(code)


def _resumable() -> bool:
    """Whether --resume has yet to be given to go on with what was interrupted."""
    return sys.argv[1:2] == ["train"] and "--resume" not in sys.argv


def _given(error: Any) -> str:
    """What was typed for the flag that an error of usage is about; typer does not say it."""
    names = {*getattr(error.param, "opts", ())} if getattr(error, "param", None) is not None else set()
    for place, word in enumerate(sys.argv):
        flag, equals, value = word.partition("=")
        if flag in names and (equals or place + 1 < len(sys.argv)):
            return f", given {(value if equals else sys.argv[place + 1])[:60]!r}"
    defaults = getattr(getattr(error, "ctx", None), "default_map", None) or {}
    name = getattr(getattr(error, "param", None), "name", None)
    return f", given {str(defaults[name])[:60]!r} by --config" if name in defaults else ""


@functools.cache
def _command() -> Any:
    """The subcommands as they are called; made once, since reading all of their flags takes a while."""
    return typer.main.get_command(app)


def _complain(message: str, code: int = USAGE) -> int:
    of_process = ""
    if not is_main_process():
        time.sleep(GRACE)  # what starts the processes ends this one meanwhile, if the main process has met the same
        of_process = f" of process {os.environ['RANK']}"
    sys.stderr.write(f"error{of_process}: {visible(' '.join(message.split()))}\n")
    return code


if __name__ == "__main__":
    main()
