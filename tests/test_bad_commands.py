"""Every command line of the tables ends in one line and exit code 2, and leaves the place as it was."""

import shlex

import pytest

from bad import place as places
from bad.commands import TABLES


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    places.make(directory)
    return directory, places.contents(directory)


@pytest.mark.parametrize("bad", [pytest.param(b, id=b.command) for table in TABLES.values() for b in table])
def test_a_bad_command_line_gets_one_line(bad, place, call, monkeypatch):
    directory, before = place
    monkeypatch.setenv("LAYERSIFT_CACHE", str(directory / "cache"))
    result = call(*shlex.split(bad.command), cwd=directory)
    assert result.returncode == 2, result.stderr or result.stdout
    *notes, line = result.stderr.rstrip("\n").split("\n")
    assert line.startswith("error: ")
    assert all(note.startswith("note: ") for note in notes), result.stderr
    assert len(line) < places.LONGEST
    for name in bad.names:
        assert name.lower() in line.lower()
    assert places.contents(directory) == before
