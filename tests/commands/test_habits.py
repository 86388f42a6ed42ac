"""What people try without reading anything: the bare command, -h, --version, completion."""

from importlib.metadata import version

from cli import layersift


def test_the_bare_command_prints_its_help():
    result = layersift()
    assert result.returncode == 0
    assert result.stdout == layersift("--help").stdout
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) > 20


def test_h_is_help():
    assert layersift("train", "-h").stdout == layersift("train", "--help").stdout
    assert "--learning-rate" in layersift("train", "-h").stdout


def test_the_version_tells_those_that_matter():
    lines = layersift("--version").stdout.splitlines()
    assert lines[0].startswith("layersift ")
    assert f"torch {version('torch')}" in lines
    assert {line.split()[0] for line in lines} >= {"python", "transformers", "peft", "accelerate"}


def test_a_shell_completes_subcommands():
    asked = {"_LAYERSIFT_COMPLETE": "complete_bash", "COMP_WORDS": "layersift ex", "COMP_CWORD": "1"}
    assert layersift(**asked).stdout.split() == ["export"]


def test_flags_of_data_may_stand_in_a_file():
    """As the README says: every command that has a flag for data has one for a file of flags."""
    import typer.main

    from layersift.__main__ import app

    for name, command in typer.main.get_command(app).commands.items():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        recipe = any(parameter.name == "recipe" for parameter in command.params)
        assert ("--data" in flags) <= ("--config" in flags), name
        assert not (recipe and "--config" in flags), name
