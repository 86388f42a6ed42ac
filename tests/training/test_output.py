"""A training's run directory, when the process is killed at the worst moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

from layersift.errors import LayersiftError
from layersift.training.output import BEGUN_WITH, RunOutput

KILLED = """
import os, pathlib, shutil, sys
from layersift.training.output import RunOutput

def die(*args, **kwargs):
    os._exit(9)

module, name = sys.argv[2].split(".")
setattr({"os": os, "Path": pathlib.Path, "shutil": shutil}[module], name, die)
place = RunOutput(pathlib.Path(sys.argv[1]), resume=True)
place.open({"seed": 0})
place.finish()
"""


def killed_at(place, call):
    """A training's beginning and end in a process that dies at its first call of that function."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(place), call], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr


def test_a_training_that_is_killed_as_it_begins_can_be_begun(tmp_path):
    for call in ("os.replace", "Path.rename"):
        killed_at(tmp_path / "run", call)
        place = RunOutput(tmp_path / "run", resume=True)
        assert not place.partial.exists(), call
        place.require_free()
    assert place.open({"seed": 0}) is None
    assert (place.partial / BEGUN_WITH).is_file()
    with pytest.raises(LayersiftError, match="begun with other seed"):
        place.open({"seed": 1})


@pytest.mark.parametrize("call", ["Path.unlink", "shutil.rmtree"])
def test_a_training_that_is_killed_as_it_ends_is_finished(tmp_path, call):
    begun = RunOutput(tmp_path / "run")
    begun.open({"seed": 0})
    begun.checkpoints.mkdir()
    (begun.partial / "adapter.txt").write_text("trained")
    killed_at(tmp_path / "run", call)
    assert not begun.partial.exists()
    assert (tmp_path / "run" / "adapter.txt").read_text() == "trained"
    with pytest.raises(LayersiftError, match="is finished"):
        RunOutput(tmp_path / "run", resume=True).require_free()
