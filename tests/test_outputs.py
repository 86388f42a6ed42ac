"""Outputs by states of the place: whatever stands where a command would write stays as it is, and is told of first."""

import json
import os

import pytest

from layersift.config.recipe import read_recipe
from layersift.errors import LayersiftError
from layersift.files import new_directory, new_outputs, write_json, write_text
from layersift.training.output import BEGUN_WITH, RunOutput, last_checkpoint

# Of commands that write one new thing; what they read need not be there, since outputs are looked at before.
COMMANDS = {
    "select": "select model --data rows.jsonl -o {out}",
    "select, its picture": "select model --data rows.jsonl --picture {out}",
    "advise": "advise model --data rows.jsonl -o {out}",
    "train": "train model --data rows.jsonl -o {out}",
    "evaluate": "evaluate run --data rows.jsonl -o {out}",
    "predict": "predict run --data rows.jsonl -o {out}",
    "export": "export s.json --to trl -o {out}",
    "push": "push run me/name --dry-run -o {out}",
    "prune": "prune run --params 100 -o {out}",
    "benchmark": "benchmark model --tasks gsm8k -o {out}",
}


def _file(path):
    path.write_text("mine")


def _empty_directory(path):
    path.mkdir()


def _directory(path):
    path.mkdir()
    (path / "file").write_text("mine")


def _dangling_link(path):
    path.symlink_to("nowhere")


def _link_to_a_file(path):
    (path.parent / "file").write_text("mine")
    path.symlink_to("file")


def _pipe(path):
    os.mkfifo(path)


STATES = [_file, _empty_directory, _directory, _dangling_link, _link_to_a_file, _pipe]


def everything(place):
    return sorted((str(p), p.is_symlink(), p.read_text() if p.is_file() else "") for p in place.rglob("*"))


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_stands_at_an_output_is_left_alone(command, state, tmp_path, call):
    state(tmp_path / "out.csv")
    before = everything(tmp_path)
    ended = call(*COMMANDS[command].format(out="out.csv").split(), cwd=tmp_path)
    assert ended.returncode == 2
    assert "out.csv" in ended.stderr
    assert "give another --output" in ended.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_another_process_is_at_is_told_as_that(command, tmp_path, call):
    with new_outputs("a test", tmp_path / "out.csv"):
        ended = call(*COMMANDS[command].format(out="./out.csv").split(), cwd=tmp_path)
    assert ended.returncode == 2
    assert "another process is at work" in ended.stderr
    assert "resume" not in ended.stderr
    assert not everything(tmp_path)


@pytest.mark.parametrize("empty", ["-o ''", "--output=", "--config '' -o x"])
def test_an_empty_output_is_not_the_current_directory(empty, tmp_path, call):
    words = [word.strip("'") for word in empty.split()]
    for command in COMMANDS.values():
        given = [word for word in command.split() if word not in ("-o", "{out}")]
        given = [word for word in given if word != "--picture"]
        ended = call(*given, *words, cwd=tmp_path)
        assert ended.returncode == 2
        assert "is empty" in ended.stderr, command


@pytest.mark.parametrize(
    ("one", "other"), [("a.png", "a.png"), ("a.png", "./a.png"), ("a.png", "x/../a.png"), ("a.png", "a.png/b.png")]
)
def test_two_outputs_of_one_command_are_never_the_same(one, other, tmp_path, call):
    ended = call("select", "model", "--data", "rows.jsonl", "-o", one, "--picture", other, cwd=tmp_path)
    assert ended.returncode == 2
    assert "outputs of one command" in ended.stderr


def test_what_comes_to_be_meanwhile_is_not_written_over(tmp_path):
    filled = new_directory(tmp_path / "place", "a test")
    (filled.__enter__() / "file").write_text("ours")
    (tmp_path / "place").mkdir()
    with pytest.raises(LayersiftError, match="exists"):
        filled.__exit__(None, None, None)
    assert everything(tmp_path) == [(str(tmp_path / "place"), False, "")]
    (tmp_path / "file.json").write_text("theirs")
    (tmp_path / "link.json").symlink_to("nowhere")
    for name in ("file.json", "link.json"):
        with pytest.raises(LayersiftError, match="meanwhile"):
            write_json(tmp_path / name, {}, new=True)
    assert (tmp_path / "file.json").read_text() == "theirs"
    assert (tmp_path / "link.json").is_symlink()
    write_text(tmp_path / "new.txt", "ours", new=True)
    assert (tmp_path / "new.txt").read_text() == "ours"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_directory_that_is_called_as_an_unfinished_training_is_left_alone(state, resume, tmp_path):
    state(tmp_path / "run.partial")
    before = everything(tmp_path)
    with pytest.raises(LayersiftError, match=r"none of ours.*give another --output"):
        RunOutput(tmp_path / "run", resume).require_free()
    assert everything(tmp_path) == before


def test_a_training_is_finished_where_nothing_is(tmp_path):
    output = RunOutput(tmp_path / "run")
    with output.begun({"seed": 1}):
        output.directory.mkdir()
        with pytest.raises(LayersiftError, match="has come to be meanwhile"):
            output.finish()
    assert (output.partial / BEGUN_WITH).is_file()
    output.directory.rmdir()
    with output.begun({"seed": 1}) as checkpoint, pytest.raises(LayersiftError, match="another process is at work"):
        RunOutput(tmp_path / "run", resume=True).require_free()
    assert checkpoint is None


@pytest.mark.parametrize(("cache", "fits"), [("run", False), ("run/cache", False), ("cache", True), (".", True)])
def test_states_are_not_kept_where_the_run_directory_is_to_be(cache, fits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = RunOutput(tmp_path / "run")
    if fits:
        output.require_apart(cache)
    else:
        with pytest.raises(LayersiftError, match="apart"):
            output.require_apart(cache)


def test_only_what_a_trainer_writes_counts_as_a_checkpoint(tmp_path):
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-12.zip", "checkpoint-7 (copy)"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("mine")
    assert last_checkpoint(tmp_path) is None
    assert len(list(tmp_path.iterdir())) == 5
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


@pytest.mark.parametrize("given", ["-o {}", "--output={}"])
def test_a_place_in_the_home_directory_is_there(given, tmp_path, bert_directory, call, monkeypatch):
    """Shells leave ~ as it is in --output=~/run, and so do recipes."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "w{i}", "label": {i % 2}}}\n' for i in range(12)))
    words = ["select", bert_directory, "--data", "rows.jsonl", "--criterion", "last", "-q"]
    assert call(*words, *given.format("~/s.json").split(), cwd=tmp_path).returncode == 0
    assert (home / "s.json").is_file()
    (tmp_path / "recipe.yaml").write_text(f"model: {bert_directory}\ndata: rows.jsonl\noutput: ~/out\n")
    assert read_recipe(tmp_path / "recipe.yaml").output == str(home / "out")
    assert not (tmp_path / "~").exists()
