"""What the README shows works as it stands there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel
from typer.testing import CliRunner

from layersift.__main__ import app
from layersift.advise.candidates import FREEZING, HALF, LOWER_RANK, MEASURED
from layersift.config.recipe import read_recipe
from tiny import tiny
from words import tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_snippet():
    (snippet,) = blocks(README, "python")
    rows = [{"question": f"w{i} w{2 * i}", "answer": f"w{i}"} for i in range(16)]
    names = {"model": tiny("llama"), "tokenizer": tokenizer("decoder", chat=True), "dataset": rows}
    exec(snippet, names)
    assert isinstance(names["peft_model"], PeftModel)
    assert names["selection"].mask.count("1") == 2
    assert isinstance(names["config"], LoraConfig)


def test_every_command_and_flag_exists():
    with_commands = (
        "benchmarks.md",
        "paper.md",
        "compare.md",
        "speed.md",
        "modules.md",
        "advise.md",
        "export.md",
        "training.md",
    )
    pages = README + "".join((ROOT / "docs" / name).read_text() for name in with_commands)
    lines = [line for text in blocks(pages, "sh") for line in text.splitlines() if line.startswith("layersift ")]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line, comments=True)
        shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, line
        for flag in (word for word in words if word.startswith("-")):
            assert flag in shown.output, f"{line}: {flag}"


def test_the_recipe_in_the_docs_is_one(tmp_path):
    (recipe,) = blocks((ROOT / "docs" / "recipes.md").read_text(), "yaml")
    (grid,) = blocks((ROOT / "docs" / "compare.md").read_text(), "yaml")
    (tmp_path / "r.yaml").write_text(f"{recipe}\n{grid}")
    assert read_recipe(tmp_path / "r.yaml").train.learning_rate == pytest.approx(2e-4)


def test_links_lead_somewhere():
    for file in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert target.startswith("http") or (file.parent / target).exists(), f"{file}: {target}"


MINILM = ["minilm-trec", "minilm-sst2"]
PAPER = ["paper-glue-sst2", "paper-glue-trec", "paper-sweep-trec", "paper-math-lora", "paper-math-pissa"]
RESULTS = ROOT / "benchmarks" / "results"
OLDER = (ROOT / "docs" / "results" / "older-tables.md").read_text()
COSTS = (ROOT / "docs" / "costs.md").read_text()


@pytest.mark.parametrize("name", ["smollm2-gsm8k", *MINILM, *PAPER])
def test_tables_are_the_ones_that_were_measured(name):
    measured = (RESULTS / f"{name}.table.md").read_text().split("\n\n")[0]
    page = dict.fromkeys(PAPER, (ROOT / "docs" / "paper.md").read_text())
    assert measured in page.get(name, OLDER)


@pytest.mark.parametrize(
    "name", ["minilm-trec/oracle", "minilm-sst2/oracle", "minilm-trec/tables", "smollm2-gsm8k/tables"]
)
def test_tables_of_criteria_are_the_ones_that_were_measured(name):
    measured = (RESULTS / "criteria" / f"{name}.md").read_text()
    tables = [part for part in measured.split("\n\n") if part.startswith("|")]
    assert tables
    assert all(table in OLDER for table in tables[:1])


STRATEGIES = ["minilm-trec", "minilm-trec-again", "minilm-sst2", "vit-digits", "smollm2-gsm8k", "smollm2-gsm8k-tuned"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_tables_of_strategies_are_the_ones_that_were_measured(name):
    measured = (RESULTS / "strategies" / name / "tables.md").read_text()
    tables = [part.strip() for part in measured.split("\n\n") if part.startswith("| layers")]
    assert len(tables) >= 2  # equal epochs, equal FLOPs; on the way, where rows were held back
    assert all(table in OLDER for table in tables[:3])


def test_what_was_trained_twice_is_told_as_it_was_computed():
    assert (RESULTS / "strategies" / "minilm-trec-twice.md").read_text().strip() in OLDER


def test_the_protocol_has_the_power_that_was_computed():
    measured = (RESULTS / "evidence" / "power.md").read_text().strip()
    assert measured in (ROOT / "docs" / "results" / "protocol.md").read_text()


def test_the_table_of_early_stops_is_the_one_that_was_measured():
    measured = (RESULTS / "until-stable.md").read_text().split("\n\n")[0].strip()
    assert measured in (ROOT / "docs" / "method.md").read_text()


def test_the_tables_of_default_rates_are_the_ones_that_were_measured():
    measured = (RESULTS / "default_rates" / "table.md").read_text().strip().split("\n\n")
    page = (ROOT / "docs" / "learning-rates.md").read_text()
    assert len(measured) == 3
    assert all(table.strip() in page for table in measured)


def test_what_to_train_has_the_differences_that_were_measured():
    rows = [line for line in README.splitlines() if line.startswith(("| time |", "| parameters"))]
    kinds = (HALF, FREEZING, LOWER_RANK)
    assert len(rows) == len(kinds)
    for row, kind in zip(rows, kinds, strict=True):
        of = MEASURED["classification"][kind]
        value, low, high, worst = (f"{100 * edge:+.1f}" for edge in (of.value, of.low, of.high, of.worst))
        decoder = f"{MEASURED['writing'][kind].value:+.3f}"
        assert row.split(" | ")[3:] == [f"{value} ({low} to {high}), {of.tasks} tasks", worst, f"{decoder} |"]


def test_what_a_race_saves_is_what_was_replayed():
    measured, page = json.loads((RESULTS / "racing.json").read_text()), (ROOT / "docs" / "compare.md").read_text()
    for name, of in measured["replayed"].items():
        assert f"| {name} | {of['flops']:.2f} | {100 * of['other_verdict']:.1f} in 100 |" in page
    over = measured["over_simulations"]
    assert f"{over['seeds_trained']:.2f} of the seeds | {100 * over['other_verdict']:.1f} in 100 |" in page


def test_tables_of_costs_are_the_ones_that_were_measured():
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py")], capture_output=True, text=True, check=True
    )
    tables = made.stdout.strip().split("\n\n")
    assert len(tables) == 5
    assert all(table in COSTS for table in tables)


def test_the_chart_has_the_table_that_was_computed():
    measured = (RESULTS / "half_of_the_layers.md").read_text().strip()
    assert measured in (ROOT / "docs" / "learning-rates.md").read_text()
    drawn = (ROOT / "docs" / "charts" / "half.svg").read_text()
    for row in measured.splitlines()[2:]:
        task, model, rows = [cell.strip() for cell in row.strip("|").split("|")][:3]
        assert f"{model}, {rows} rows of {task}" in drawn


def test_how_often_decoders_layers_are_beaten_is_counted_from_their_table():
    results = ROOT / "docs" / "results"
    page = (results / "half.md").read_text()
    table = page.split("| model and task |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    last, random = ([row[column] for row in rows if row[column] != "-"] for column in (3, 4))
    worse = [sum(cell.endswith("worse") for cell in cells) for cells in (last, random)]
    better = [sum(cell.endswith("better") for cell in cells) for cells in (last, random)]
    halves = [row for row in rows if int(row[1].split(" of ")[0]) * 2 == int(row[1].split(" of ")[1])]
    lost = [", worse" in row[2] for row in halves if row[2] != "-"]
    assert f"CKA's in {sum(lost)} of {len(lost)}." in page
    said = (
        f"On decoders CKA's layers were better than the last in {worse[0]} of {len(last)} and worse in {better[0]}, "
        f"better than random ones in {worse[1]} of {len(random)} and worse in {better[1]}"
    )
    assert all(said in (results / f"{name}.md").read_text() for name in ("rules", "index", "defaults"))
