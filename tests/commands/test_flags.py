"""Flags are the settings' fields: same names, defaults and help, and the path of a value can be followed."""

from dataclasses import MISSING, fields

import pytest
import typer
import yaml

from layersift.__main__ import app
from layersift.commands.flags import key_values, with_settings
from layersift.config.fields import default_of, help_of, types_of
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError

COMMANDS = typer.main.get_command(app).commands
SETTINGS = {
    "select": (ModelSource, DataSettings, SelectSettings),
    "train": (ModelSource, DataSettings, TrainSettings),
    "inspect": (ModelSource,),
}
# What a command has no flag for, or what is named otherwise there.
LEFT_OUT = {"train": {"stream"}, "inspect": {"device", "stream"}, "select": set()}
NAMED = {"name": "model", "method_options": "method_option", "ranks": "rank_of"}


@pytest.mark.parametrize("command", SETTINGS)
def test_every_setting_is_a_flag_with_its_default_and_its_help(command):
    flags = {parameter.name: parameter for parameter in COMMANDS[command].params}
    for cls in SETTINGS[command]:
        for field in fields(cls):
            if field.name in LEFT_OUT[command]:
                assert field.name not in flags
                continue
            flag = flags[NAMED.get(field.name, field.name)]
            if flag.param_type_name == "option" or flag.help:  # older versions of typer keep an argument's elsewhere
                assert flag.help == help_of(types_of(cls)[field.name])
            default = default_of(field)
            if default is MISSING:
                assert flag.required
            elif default in ({}, []):
                assert not flag.default
            else:
                assert flag.default == default, field.name


@pytest.mark.parametrize(
    ("command", "flag", "wanted"),
    [
        ("select", "rank", TrainSettings.rank),
        ("select", "method", TrainSettings.method),
        ("inspect", "rank", TrainSettings.rank),
        ("inspect", "batch_size", TrainSettings.batch_size),
        ("evaluate", "split", EvaluateSettings.split),
        ("evaluate", "max_new_tokens", EvaluateSettings.max_new_tokens),
    ],
)
def test_single_flags_take_their_defaults_from_the_settings(command, flag, wanted):
    assert next(p for p in COMMANDS[command].params if p.name == flag).default == wanted


def test_a_command_gets_its_settings_whole():
    seen = []

    @with_settings
    def command(model: ModelSource, data: DataSettings, settings: TrainSettings, other: int = 3) -> None:
        seen.append((model, data, settings, other))

    given = {f.name: default_of(f) for cls in (ModelSource, DataSettings, TrainSettings) for f in fields(cls)}
    del given["name"], given["method_options"], given["ranks"]
    given |= {"model": "m", "data": "d.jsonl", "rank": 4, "method_option": ["use_rslora=true"], "rank_of": ["mlp=2"]}
    command(**given, other=5)
    ((model, data, settings, other),) = seen
    assert (model, data, other) == (ModelSource("m"), DataSettings("d.jsonl"), 5)
    assert settings == TrainSettings(rank=4, method_options={"use_rslora": True}, ranks={"mlp": 2})


@pytest.mark.parametrize("text", ["rank", "=4", "a=["])
def test_pairs_of_another_form_are_refused(text):
    with pytest.raises(LayersiftError, match="--rank-of"):
        key_values([text], "--rank_of")


def test_the_config_file_takes_every_flag_by_name(call, bert_directory, tmp_path):
    rows = "\n".join(f'{{"text": "w{i} w{i % 5}", "label": {i % 2}}}' for i in range(20))
    (tmp_path / "d.jsonl").write_text(rows)
    config = {"data": "d.jsonl", "top-n": 1, "max_samples": 16, "criterion": "cosine", "dry-run": True}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    shown = call("select", bert_directory, "--config", "c.yaml", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "1 of 4" in shown.stdout
    assert "cosine" in shown.stdout
    assert "16 (seed 0)" in shown.stdout


def test_the_schema_command_prints_json(call, tmp_path):
    shown = call("schema", "recipe", cwd=tmp_path)
    assert '"additionalProperties": false' in shown.stdout
    refused = call("schema", "page", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
