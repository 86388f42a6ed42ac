"""Run a program that a model wrote: in a process of its own, with limits, and gone with its children afterwards.

This keeps a broken program from filling the machine. It is no sandbox: the program may read what the user may read and
may use the network. Run a model you do not trust in a container or a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

from layersift.errors import LayersiftError

Outcome = Literal["passed", "failed", "timed out"]
CHILD = Path(__file__).with_name("execution_child.py")


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 10.0  # by the clock, starting the interpreter included; of processor time, the next whole second
    memory_bytes: int = 1 << 30  # of address space
    file_bytes: int = 16 << 20  # a file

    def described(self) -> str:
        """The limits, for the screen."""
        memory, file = self.memory_bytes >> 20, self.file_bytes >> 20
        return f"{self.seconds:g} s, {memory:,} MiB of memory, {file:,} MiB a file"


LIMITS = Limits()


def require_posix() -> None:
    """Refuse where the system cannot set limits.

    Raises:
        LayersiftError: on Windows.
    """
    if os.name != "posix":
        raise LayersiftError("running programs under limits needs Linux or macOS")


def run_program(program: str, limits: Limits = LIMITS) -> Outcome:
    """Run Python source to its end. It passed if it got there without an exception, an exit or a signal.

    The process starts in an empty temporary directory, which is removed afterwards, with an environment of its own, no
    input and no output. Its process group is killed in every case, so nothing it started lives on unless it left the
    group. Users other than root cannot start further processes or threads at all.

    Raises:
        LayersiftError: the system cannot set limits.
    """
    require_posix()
    token = secrets.token_hex(16)  # written by the child behind the program's end: leaving early is not passing
    with (
        tempfile.TemporaryDirectory(prefix="layersift-", ignore_cleanup_errors=True) as directory,
        tempfile.TemporaryFile() as task,
    ):
        task.write(json.dumps({"program": program, "token": token, **asdict(limits)}).encode())
        task.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-s", str(CHILD)],
            stdin=task,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=_environment(directory),
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout as verdict:
            try:
                # Readable once the token is there, or once every process that held the pipe has ended.
                ended = bool(wait([verdict.fileno()], limits.seconds))
                written = os.read(verdict.fileno(), len(token)).decode(errors="replace") if ended else ""
            finally:
                # Not waited for before this line: until then the number of the group is not given to another.
                with suppress(ProcessLookupError, PermissionError):  # macOS: a group of dead processes
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if written == token:
        return "passed"
    return "failed" if ended and process.returncode != -signal.SIGXCPU else "timed out"


def _environment(directory: str) -> dict[str, str]:
    """Nothing of the user's; string hashes fixed, so that the same program behaves the same twice."""
    own = {"HOME": directory, "TMPDIR": directory, "PATH": os.defpath, "LANG": "C.UTF-8"}
    return own | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
