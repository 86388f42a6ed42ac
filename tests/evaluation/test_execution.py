"""Programs that a model wrote run under limits, and nothing of them stays."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from layersift.evaluation.execution import Limits, run_program

QUICK = Limits(seconds=1.0)
GIVE_TIME = Limits(seconds=30.0)  # where the limit is not the point and the machine may be busy


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("def f(x):\n    return x + 1\nassert f(1) == 2", "passed"),
        ("def f(x):\n    return x - 1\nassert f(1) == 2", "failed"),
        ("import math, re, typing\nassert math.isqrt(17) == 4", "passed"),
        (
            "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    a: int",
            "passed",
        ),
        ("def f(:", "failed"),
        ("x = 'not closed", "failed"),
        ("import sys\nsys.exit(0)\nassert False", "failed"),
        ("import os\nos._exit(0)", "failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed"),
        ("if __name__ == '__main__':\n    raise ValueError", "passed"),
        ("print('a' * 10**6)\nimport sys\nsys.stderr.write('b' * 10**6)", "passed"),
        ("assert input() == ''", "failed"),
        ("def f(n):\n    return f(n + 1)\nf(0)", "failed"),
        ("try:\n    import metrics\nexcept ImportError:\n    pass\nelse:\n    raise ValueError", "passed"),
    ],
)
def test_a_program_passes_if_it_comes_to_its_end(program, outcome):
    assert run_program(program, GIVE_TIME) == outcome


def test_a_loop_is_ended():
    for loop in ("while True:\n    pass", "import time\ntime.sleep(60)"):
        start = time.monotonic()
        assert run_program(loop, QUICK) == "timed out"
        assert time.monotonic() - start < 10


def test_the_other_limits_are_in_force_where_the_program_runs():
    program = (
        "from resource import *\nassert getrlimit(RLIMIT_CPU) == (30, 31)\nassert getrlimit(RLIMIT_CORE) == (0, 0)\n"
        "assert getrlimit(RLIMIT_NPROC) == (0, 0)\nassert getrlimit(RLIMIT_NOFILE) == (64, 64)"
    )
    assert run_program(program, GIVE_TIME) == "passed"


def test_memory_is_limited():
    assert run_program("x = bytearray(200 << 20)", GIVE_TIME) == "passed"
    assert run_program("x = bytearray(2 << 30)", GIVE_TIME) == "failed"
    caught = "try:\n    x = bytearray(2 << 30)\nexcept MemoryError:\n    pass\nelse:\n    raise ValueError"
    assert run_program(caught, GIVE_TIME) == "passed"


def test_the_size_of_files_is_limited():
    write = "with open('f', 'wb') as f:\n    for _ in range({}):\n        f.write(bytes(1 << 20))"
    assert run_program(write.format(8), GIVE_TIME) == "passed"
    assert run_program(write.format(32), GIVE_TIME) == "failed"


def test_files_land_in_a_temporary_directory_that_goes(tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    here, temporary = tmp_path / "here", tmp_path / "tmp"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    program = (
        "import os, tempfile\nopen('made', 'w').write('x')\nhome = os.path.expanduser('~')\n"
        f"assert os.listdir() == ['made']\nopen({str(kept)!r}, 'w')"
        ".write('\\n'.join([os.getcwd(), home, tempfile.gettempdir()]))"
    )
    assert run_program(program, GIVE_TIME) == "passed"
    (directory,) = set(kept.read_text().splitlines())
    assert Path(directory).parent == temporary
    assert not Path(directory).exists()
    assert list(temporary.iterdir()) == list(here.iterdir()) == []


def test_the_environment_is_not_the_users(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    program = "import os, sys\nassert 'SECRET_TOKEN' not in os.environ\nassert '/somewhere' not in sys.path"
    assert run_program(program, GIVE_TIME) == "passed"
    hashed = [sys.executable, "-c", "print(hash('a string'))"]
    value = subprocess.run(hashed, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True).stdout
    assert run_program(f"assert hash('a string') == {value}", GIVE_TIME) == "passed"


FORKS = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        with open({path!r}, "a") as f:
            f.write(str(os.getpid()) + "\\n")
        while True:
            time.sleep(1)
time.sleep({pause})
{end}
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("pause", "end", "outcome"),
    [(0.5, "", "passed"), (60, "", "timed out"), (0.5, "raise ValueError", "timed out")],
)
def test_children_are_killed_with_their_group(tmp_path, pause, end, outcome):
    """As root; for others the limit on processes forbids the first fork. A failed parent whose children hold on to the
    pipe is only told by the clock."""
    if os.geteuid() != 0:
        outcome = "failed"
    path = tmp_path / "pids"
    path.touch()
    assert run_program(FORKS.format(path=str(path), pause=pause, end=end), Limits(seconds=2.0)) == outcome
    pids = [int(line) for line in path.read_text().split()]
    assert len(pids) == (4 if os.geteuid() == 0 else 0)
    deadline = time.monotonic() + 5
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))
