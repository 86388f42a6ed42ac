"""`layersift inspect` of data whose columns have names of the user's own: what it proposes can be pasted."""

import csv
import shlex

import pytest


@pytest.fixture
def tickets(tmp_path):
    with (tmp_path / "my tickets.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["nr", "what is asked", "team"])
        writer.writerows([i, f"w{i} w{(i * 7) % 40} w3", ("billing", "delivery")[i % 2]] for i in range(24))
    return "my tickets.csv"


def test_the_first_command_that_is_printed_shows_what_is_read(tickets, bert_directory, tmp_path, call):
    asked = call("inspect", bert_directory, "--data", tickets, cwd=tmp_path)
    assert asked.returncode == 2
    wanted = "--text-column 'what is asked' --label-column team"
    assert wanted in asked.stderr
    assert asked.stderr.count("\n") == 1
    (likely,) = [line for line in asked.stdout.splitlines() if line.startswith("--label-column")]
    assert "team (2 " in likely
    command = next(line for line in asked.stdout.splitlines() if line.startswith("layersift inspect"))
    assert wanted in command
    shown = call(*shlex.split(command)[1:], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "2 classes: billing (12), delivery (12)" in shown.stdout


@pytest.mark.parametrize("command", [["train"], ["select"], ["advise", "--time", "0.6"]])
def test_other_commands_name_the_likeliest_columns_in_one_line(command, tickets, bert_directory, tmp_path, call):
    name, *more = command
    result = call(name, bert_directory, "--data", tickets, *more, "-o", "new", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--text-column 'what is asked' --label-column team" in result.stderr
    assert not (tmp_path / "new").exists()


def test_an_encoder_given_texts_alone_is_told_of_labels(bert_directory, tmp_path, call):
    rows = "".join(f'{{"text": "w{i} w{i % 7}", "team": "{"ab"[i % 2]}"}}\n' for i in range(24))
    (tmp_path / "rows.jsonl").write_text(rows)
    result = call("train", bert_directory, "--data", "rows.jsonl", "-o", "new", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--label-column" in result.stderr
