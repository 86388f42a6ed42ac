"""The command line in a process of its own, begun by a server that has imported everything once: that takes long.

The server has run nothing yet. A process forked from the tests' own would lack the threads of what they have used.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

NEEDED = [
    "layersift.__main__",
    "layersift.commands.console",
    "layersift.experiment.grid",
    "layersift.experiment.compare",
    "layersift.experiment.run",
    "layersift.experiment.train_task",
    "layersift.report.write",
    "altair",
    "pydantic",
    "scipy.stats",
    "sklearn.metrics",
    "vl_convert",
]


def serve():
    """Have the one server of a process import what any command needs, also where a grid starts it."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(NEEDED)
    multiprocessing.forkserver.set_forkserver_preload = lambda names: None


def layersift(*arguments, cwd=None, **environment):
    """What ``python -m layersift`` prints and ends with."""
    words = [str(argument) for argument in arguments]
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        given = (words, str(cwd or "."), {"HF_HUB_OFFLINE": "1", **environment}, place)
        process = context.Process(target=_run, args=given)
        process.start()
        process.join()
        said = [(place / name).read_bytes().decode() for name in ("out", "err")]
    return CompletedProcess(words, process.exitcode, *said)


def _run(words, cwd, environment, place):
    """The process's life; it never returns."""
    code = 1
    gc.freeze()  # as in tests/conftest.py
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.chdir(cwd)
        os.environ.update(environment)
        fork = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: fork  # nothing has been run here, and importing takes long
        sys.argv = ["layersift", *words]
        from layersift.__main__ import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
