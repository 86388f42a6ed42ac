"""Programs that a model wrote run under limits, and nothing of them stays."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from layersift.evaluation.execution import Limits, run_tests

QUICK = Limits(seconds=1.0)
GIVE_TIME = Limits(seconds=30.0)  # where the limit is not the point and the machine may be busy


def run_program(program, limits):
    """A program without tests: it passes if it comes to its end."""
    return run_tests(program, "", limits=limits)


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


TAKES_THE_TOKEN = """
import sys
frame = sys._getframe()
while frame is not None:
    for value in list(frame.f_locals.values()):
        if isinstance(value, bytes | str) and len(value) == 32:
            import os
            for fd in range(3, 64):
                try:
                    os.write(fd, value if isinstance(value, bytes) else value.encode())
                except OSError:
                    pass
    frame = frame.f_back
def f(x):
    return x
"""
EQUALS_ANYTHING = """
class Anything:
    def __eq__(self, other):
        return True
    __lt__ = __gt__ = __ne__ = __eq__
    def __sub__(self, other):
        return self
def f(x):
    return Anything()
"""
WRITES_TO_EVERY_PIPE = """
import os
def f(x):
    for fd in range(3, 64):
        for text in (b"ready\\n", b'{"value": ["plain", "True"]}\\n', b"0" * 32):
            try:
                os.write(fd, text)
            except OSError:
                pass
    return None
"""


@pytest.mark.parametrize("cheat", [TAKES_THE_TOKEN, EQUALS_ANYTHING, WRITES_TO_EVERY_PIPE])
@pytest.mark.parametrize("test", ["assert f(1) == 2", "assert abs(f(1) - 2) < 1e-6", "assert f(1) > 1"])
def test_a_program_cannot_say_itself_that_it_passed(cheat, test):
    assert run_tests(cheat, test, limits=GIVE_TIME) == "failed"
    assert run_tests(f"{cheat}\nimport os\nos._exit(0)", test, limits=GIVE_TIME) == "failed"


@pytest.mark.parametrize(
    ("answer", "tests"),
    [
        ("def f(a, b=1):\n    return [a, (b, None), {'k': {1.5}}]", "assert f(2, b=3) == [2, (3, None), {'k': {1.5}}]"),
        ("def f():\n    return float('inf'), 1j, b'a', 'é'", "assert f() == (float('inf'), 1j, b'a', 'é')"),
        ("from collections import Counter\ndef f(x):\n    return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(x):\n    return (i * i for i in x)", "assert list(f([1, 2])) == [1, 4]\nassert sum(f([1, 2])) == 5"),
        (
            "class Pair:\n    def __init__(self, a):\n        self.a = a\ndef f(x):\n    return max(p.a for p in x)",
            "assert f([Pair(3), Pair(5)]) == 5\nassert Pair(4).a == 4",
        ),
        (
            "def f(g):\n    return g",
            "import math\nassert math.isclose(f(1.0), 1.0)\nassert [f(i) for i in (0, 1)] == [0, 1]",
        ),
        ("def f():\n    raise KeyError('x')", "try:\n    f()\nexcept KeyError:\n    pass\nelse:\n    raise ValueError"),
    ],
)
def test_values_come_and_go_as_they_are(answer, tests):
    assert run_tests(answer, tests, limits=GIVE_TIME) == "passed"


def test_helpers_of_the_context_are_the_tests_own():
    context = "def double(x):\n    return 2 * x\ndef f(x):\n    'Half of x.'\n"
    right, wrong = context + "    return x / 2\n", "def double(x):\n    return x\n" + context + "    return x\n"
    tests = "def check(candidate):\n    assert candidate(double(4)) == 4\ncheck(f)\n"
    assert run_tests(right, tests, context, "f", GIVE_TIME) == "passed"
    assert run_tests(wrong, tests, context, "f", GIVE_TIME) == "failed"


def test_the_total_size_of_files_is_limited():
    many = "import time\nfor i in range({}):\n    open(str(i), 'wb').write(bytes(8 << 20))\n    time.sleep(0.05)"
    assert run_program(many.format(4), GIVE_TIME) == "passed"
    assert run_program(many.format(200), GIVE_TIME) == "failed"
