"""Every flag of every command either always has an effect, or is refused where it has none, which is tried out."""

import shlex

import pytest
import typer

from bad.commands import TABLES
from layersift.__main__ import app
from layersift.commands.effects import refusals_of

COMMANDS = typer.main.get_command(app).commands
MODEL = "model device trust_remote_code"
PRECISION = "dtype quantization"
COLUMNS = "text_column text_pair_column label_column prompt_column response_column messages_column image_column"
# A column that the task has no use for, a length of images, a template for no conversation and the languages of a model
# of one are refused once the data are read: tests/data/, and the table of bad command lines.
DATA = f"data task {COLUMNS} choices_column max_length chat_template source_language target_language"
TRAIN = "max_samples epochs learning_rate batch_size gradient_accumulation method scheduler weight_decay precision"
TRAIN += " gradient_checkpointing loraplus_ratio layer_decay"
GRID = "recipe assignments output on threads smoke dry_run json"
# Permissions (trust_remote_code, allow_code_execution) and the ways of asking (dry_run, json, config) are here, too.
ALWAYS = {
    "inspect": "model trust_remote_code data selection layers target_modules rank plan config json",
    "advise": f"{MODEL} {PRECISION} {DATA} {TRAIN} activation_cache memory device_name time params adapter_size trial "
    "output seed trainer_file devices sharding config json",
    "select": f"{MODEL} {DATA} ratio top_n budget_params threshold objective modules tower compat picture "
    "output config dry_run json",
    "train": f"{MODEL} {PRECISION} {DATA} {TRAIN} hold_back eval_data report_to selection ratio layers "
    "sharding resume merge output seed config dry_run json",
    "evaluate": "run data max_samples device trust_remote_code output config dry_run json",
    "predict": "run data keep device trust_remote_code output config json",
    "export": "source to layers spectrum output config json",
    "prune": "run params bytes_ output config json",
    "push": "run repo base_model evaluation private dry_run config json",
    "benchmark": "run tasks task_path data limit batch_size max_new_tokens allow_code_execution device "
    "trust_remote_code seed output config dry_run json",
    "run": GRID,
    "sweep": f"{GRID} ranks",
    "compare": f"{GRID} criteria sizes seeds methods race",
    "oracle": f"{GRID} size sample criteria seeds",
    "doctor": "place json",
    "criteria": "json",
    "recipes": "name json",
    "schema": "kind",
    "demo": "model output jobs json",
}


def refused(command):
    return {flag for refusal in refusals_of(command) for flag in refusal.flags}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_been_decided_on(command):
    flags = {parameter.name: parameter for parameter in COMMANDS[command].params}
    always, sometimes = set(ALWAYS[command].split()), refused(command) & set(flags)
    assert always | sometimes == set(flags), "a flag is in the table of refusals, or in that of this test"
    assert not always & sometimes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_refusal_is_tried_out(command):
    flags = {parameter.name: parameter for parameter in COMMANDS[command].params}
    tried = [bad for bad in TABLES["flags"] if shlex.split(bad.command)[0] == command]
    for name in refused(command) & set(flags):
        flag = max(flags[name].opts, key=len)
        assert any(bad.names[0].split() == [flag, "has", "no", "effect"] for bad in tried), f"{command} {flag}"


def test_the_table_names_flags_that_there_are():
    known = {name: {parameter.name for parameter in command.params} for name, command in COMMANDS.items()}
    for name, flags in known.items():
        for refusal in refusals_of(name):
            missing = set(refusal.flags) - flags if refusal.commands else set()
            others = set().union(*(known[other] for other in refusal.commands))
            assert missing <= others


def test_defaults_are_nobodys_wish(call, bert_directory, tmp_path):
    """What is refused when it is given goes unsaid when it is not, and where a file of flags turns it off."""
    (tmp_path / "flags.yaml").write_text("quiet: false\nplan: false\n")
    assert call("inspect", bert_directory, "--json", "--config", "flags.yaml", cwd=tmp_path).returncode == 0
    (tmp_path / "flags.yaml").write_text("quiet: true\n")
    assert call("inspect", bert_directory, "--json", "--config", "flags.yaml", cwd=tmp_path).returncode == 2


def test_a_split_counts_where_there_are_several(tmp_path):
    from layersift.data.rows import split_counts

    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "train-1.jsonl").write_text("{}\n")
    (tmp_path / "images" / "test" / "cats").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "dataset_dict.json").write_text("{}")
    found = {
        name: split_counts(str(tmp_path / name), "test")
        for name in ("one", "one/rows.jsonl", "one/*.jsonl", "named", "images", "saved", "several")
    }
    counting = {"named", "images", "several"}
    assert {name for name, counts in found.items() if counts} == counting
    assert split_counts("user/data", "test")
