"""Tables on narrow screens: the last columns are left to a file, and no name is cut."""

import os
import pty
import re
import subprocess
import sys

import pytest

from layersift.commands.console import narrowed

ROWS = [
    ["layers", "accuracy", "from all", "rate", "seconds"],
    ["selected 0011", "0.8", "-0.1 (-0.2 to 0.0)", "1e-3", "1"],
]


@pytest.mark.parametrize(("width", "kept"), [(200, 5), (58, 5), (57, 4), (49, 4), (48, 3), (10, 3)])
def test_columns_are_left_out_from_the_last_on_and_three_stay(width, kept):
    rows, left = narrowed(ROWS, width)
    assert [len(row) for row in rows] == [kept, kept]
    assert left == ROWS[0][kept:]
    assert rows[0] + left == ROWS[0]


def shown(code, columns):
    """What a program prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as running:
        os.close(theirs)
        read = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:  # the other side has closed
                break
            if not more:
                break
            read += more
        running.wait()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", read.decode().replace("\r\n", "\n"))


def test_a_terminal_is_told_where_the_rest_stands():
    code = f"from layersift.commands.console import Console; Console().table({ROWS}, 'out/table.md')"
    narrow = shown(code, 54)
    assert narrow.splitlines()[-1] == "on a wider screen, and in out/table.md: seconds"
    assert "rate" in narrow.splitlines()[0]
    assert "wider" not in shown(code, 80)


def test_a_long_name_is_broken_not_cut():
    name = "attention.self.query_key_value_projection"
    rows = [["b", "adapted"], ["x", name]]
    code = f"from layersift.commands.console import Console; Console().table({rows})"
    said = shown(code, 30)
    assert "…" not in said
    assert "".join(line[3:].strip() for line in said.splitlines()[1:]) == name
