"""The command line in a process of its own, which is forked from the tests' own, since importing torch takes long.

Commands that draw are begun anew: the library that does it has threads, which a forked process lacks.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess, run

DRAWING = ("run", "sweep", "compare", "oracle", "demo", "advise")


def layersift(*arguments, cwd=None, **environment):
    """What ``python -m layersift`` prints and ends with."""
    words = [str(argument) for argument in arguments]
    environment = {"HF_HUB_OFFLINE": "1", **environment}
    if words[0] in DRAWING:
        command = [sys.executable, "-m", "layersift", *words]
        return run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False)
    place = Path(tempfile.mkdtemp())
    child = os.fork()
    if child == 0:
        _run(words, cwd, environment, place)
    status = os.waitpid(child, 0)[1]
    said = [(place / name).read_bytes().decode() for name in ("out", "err")]
    return CompletedProcess(words, os.waitstatus_to_exitcode(status), *said)


def _run(words, cwd, environment, place):
    """The child's life; it never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.chdir(cwd or ".")
        os.environ.update(environment)
        fork = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: fork  # a server of the parent's serves no child of it
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
