"""What --help shows: every summary whole, an example that is a command, and flags in groups."""

import shlex

import pytest
from typer.testing import CliRunner

from layersift.__main__ import SUBCOMMANDS, app
from layersift.commands.help import EXAMPLES, SUMMARIES

NAMES = [command.__name__ for command in SUBCOMMANDS]


def help_of(*words, width=80):
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(width)})
    assert shown.exit_code == 0
    return shown.output


def test_no_summary_is_cut():
    assert set(SUMMARIES) == set(EXAMPLES) == set(NAMES)
    lines = help_of().splitlines()
    assert all(any(line.split(maxsplit=1) == [name, SUMMARIES[name]] for line in lines) for name in NAMES)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_the_example_is_of_this_command_and_its_flags_exist(name):
    own = help_of(name)
    (line,) = (line.strip() for line in own.splitlines() if line.strip().startswith("Example: "))
    words = shlex.split(line.removeprefix("Example: "))
    assert words[:2] == ["layersift", name]
    assert all(f"{word} " in own or f"{word}," in own for word in words if word.startswith("-"))


def test_flags_stand_in_groups():
    own = help_of("train")
    groups = [line for line in own.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["Arguments:", "Model:", "Data:", "Training:", "Speed and memory:", *groups[5:]]
    assert groups[-1] == "Output and others:"
    model, data = own.index("Model:"), own.index("Data:")
    assert model < own.index("--revision") < data < own.index("--text-column")
    assert own.index("--activation-cache") > own.index("Speed and memory:")
