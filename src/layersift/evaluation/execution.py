"""Run a program that a model wrote: in a process of its own, with limits, and gone with its children afterwards.

This keeps a broken program from filling the machine. What it does not promise: it is no sandbox. The program may read
what the user may read, write wherever the user may, use the network, and look at the user's other processes; the total
size of files is looked at ten times a second, in its own directory only. Run a model you do not trust in a container or
a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from layersift.errors import LayersiftError

Outcome = Literal["passed", "failed", "timed out"]
CHILD = Path(__file__).with_name("execution_child.py")
LOOK = 0.1  # seconds between two looks at what is written


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 10.0  # by the clock, starting the interpreter included; of processor time, the next whole second
    memory_bytes: int = 1 << 30  # of address space
    file_bytes: int = 16 << 20  # a file
    total_bytes: int = 64 << 20  # of all files in its directory

    def described(self) -> str:
        """The limits, for the screen."""
        memory, file, total = self.memory_bytes >> 20, self.file_bytes >> 20, self.total_bytes >> 20
        return f"{self.seconds:g} s, {memory:,} MiB of memory, {file:,} MiB a file, {total:,} MiB in all"


LIMITS = Limits()


def require_posix() -> None:
    """Refuse where the system cannot set limits.

    Raises:
        LayersiftError: on Windows.
    """
    if os.name != "posix":
        raise LayersiftError("running programs under limits needs Linux or macOS")


def run_tests(answer: str, tests: str, context: str = "", name: str | None = None, limits: Limits = LIMITS) -> Outcome:
    """Hold Python source that a model wrote against tests. It passed if the tests got to their end.

    The answer runs in one process; the tests, and the verdict, are another's, in which nothing of the answer runs: they
    ask for what its functions return. Arguments and results that are plain values are copied between them.

    Both start in an empty temporary directory, which is removed afterwards, with an environment of their own, no input
    and no output. Their process groups are killed in every case, so nothing they started lives on unless it left the
    group. Users other than root cannot start further processes or threads at all.

    Args:
        context: what the answer continues, whose helpers the tests may use.
        name: of the function under test, where the context holds its beginning.

    Raises:
        LayersiftError: the system cannot set limits.
    """
    require_posix()
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="layersift-", ignore_cleanup_errors=True) as directory, ExitStack() as ends:
        asked, answers = _pipe(ends), _pipe(ends)
        of_answer = {"source": answer, "requests": asked.out, "replies": answers.into}
        of_tests = {"context": context, "tests": tests, "name": name, "requests": asked.into, "replies": answers.out}
        answering = _start(of_answer, directory, limits, (asked.out, answers.into))
        testing = _start(of_tests | {"token": token}, directory, limits, (asked.into, answers.out))
        ends.close()  # the two hold them now, so that each sees when the other has gone
        assert testing.stdout is not None
        with testing.stdout as verdict:
            try:
                ended = _ended(verdict.fileno(), directory, limits)
                written = os.read(verdict.fileno(), len(token)).decode(errors="replace") if ended == "ended" else ""
            finally:
                for process in (answering, testing):
                    # Not waited for before this line: until then the number of the group is not given to another.
                    with suppress(ProcessLookupError, PermissionError):  # macOS: a group of dead processes
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    if written == token:
        return "passed"
    too_long = -signal.SIGXCPU in (answering.returncode, testing.returncode)
    return "timed out" if ended == "too long" or too_long else "failed"


@dataclass(frozen=True)
class _Pipe:
    out: int
    into: int


def _pipe(ends: ExitStack) -> _Pipe:
    out, into = os.pipe()
    ends.callback(os.close, out)
    ends.callback(os.close, into)
    return _Pipe(out, into)


def _start(task: dict[str, Any], directory: str, limits: Limits, handed: tuple[int, int]) -> subprocess.Popen[bytes]:
    """One of the two processes, with its ends of the pipes."""
    of_process = {name: value for name, value in asdict(limits).items() if name != "total_bytes"}
    with tempfile.TemporaryFile() as given:
        given.write(json.dumps(task | {"limits": of_process}).encode())
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-s", str(CHILD)],
            stdin=given,
            stdout=subprocess.PIPE if "token" in task else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=_environment(directory),
            start_new_session=True,
            pass_fds=handed,
        )


def _ended(verdict: int, directory: str, limits: Limits) -> Literal["ended", "too long", "too much"]:
    """Wait until the token is there, or every process that held the pipe has ended, or a limit is reached."""
    until = time.monotonic() + limits.seconds
    while (left := until - time.monotonic()) > 0:
        if wait([verdict], min(left, LOOK)):
            return "ended"
        if _written(directory) > limits.total_bytes:
            return "too much"
    return "too long"


def _written(directory: str) -> int:
    """Bytes of all files below a directory, some of which may be gone by then."""
    total = 0
    for place, _, files in os.walk(directory):
        for file in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, file)).st_size
    return total


def _environment(directory: str) -> dict[str, str]:
    """Nothing of the user's; string hashes fixed, so that the same program behaves the same twice."""
    own = {"HOME": directory, "TMPDIR": directory, "PATH": os.defpath, "LANG": "C.UTF-8"}
    return own | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
