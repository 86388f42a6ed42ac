"""What is advised within limits, what it is said to take, and what then is trained."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from typer.main import get_command

from cli import layersift
from layersift.__main__ import app
from layersift.advise import adviser as advising
from layersift.advise.adviser import advise
from layersift.advise.candidates import (
    ALL,
    CLASSIFICATION,
    FREEZING,
    HALF,
    LOWER_RANK,
    MEASURED,
    SHORTER,
    THIRD,
    WRITING,
    Situation,
    list_variants,
)
from layersift.commands.advise import _next as next_command
from layersift.config.defaults import Trained, default_rate
from layersift.config.limits import Devices, Limits, find_device
from layersift.config.quantities import layers_told
from layersift.config.recipe import DataSettings, ModelSource, Recipe, read_recipe
from layersift.config.train import TrainSettings
from layersift.experiment.prepare import checked
from layersift.experiment.run import run
from layersift.plan.devices import memory_of_device
from layersift.plan.memory import MARGIN, tell_bytes
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.progress import Reporter
from layersift.report.advice import advice_json
from layersift.report.advice_page import advice_page
from layersift.report.advice_text import WIDTH, advice_words, advised_recipe

ROOT = Path(__file__).parents[2]
TRAIN = TrainSettings(epochs=2, batch_size=8)
LINES = 12  # on screen, the command to go on with included


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("advise") / "rows.jsonl"
    rows = [{"text": f"w{i % 7} w{i % 11} w{i % 5}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def prepared(bert_directory, data):
    recipe = Recipe(ModelSource(bert_directory), DataSettings(data), "run", train=TRAIN)
    _, _, rows = checked(recipe, Reporter())
    return recipe, rows, advising.Prices(recipe, rows)


@pytest.fixture
def advised(prepared, monkeypatch):
    """The advice within some limits, on a machine of a known speed; what has been planned is not planned again."""
    recipe, rows, prices = prepared

    def given(speed=1e9, **limits):
        return advise_with(prices, recipe, rows, monkeypatch, speed, **limits)

    return given


def advise_with(prices, recipe, rows, monkeypatch, speed=1e9, **limits):
    monkeypatch.setattr(advising, "Prices", lambda *_: prices)
    monkeypatch.setattr(prices, "measured_pace", lambda _: speed)
    return advise(recipe, rows, Limits(**limits))


def by_kind(advice):
    return {one.variant.kind: one for one in reversed(advice.priced)}


def test_without_limits_all_layers_are_advised(advised):
    advice = advised()
    assert advice.recommended.variant.name == "all layers"
    assert advice.recommended.flops == 1.0
    assert all(one.fits for one in advice.priced)
    assert not advice.spare  # of no limit nothing is left
    costs = by_kind(advice)
    assert LOWER_RANK not in costs  # parameters are not short
    assert costs[THIRD].flops < costs[HALF].flops < costs[FREEZING].flops < 1
    assert costs[HALF].memory_bytes < costs[FREEZING].memory_bytes == costs[ALL].memory_bytes
    assert {one.adapter_bytes / one.parameters for one in advice.priced} == {4}


@pytest.mark.parametrize("order", [CLASSIFICATION, WRITING])
def test_the_order_is_a_table_with_short_risks_and_pages_that_exist(order):
    kinds = [kind.name for kind in order]
    assert len(set(kinds)) == len(kinds)
    assert kinds[0] == ALL
    assert kinds[-1] == SHORTER
    assert all(1 <= len(kind.risk.split()) <= 12 for kind in order)
    assert all((ROOT / kind.evidence).is_file() for kind in order)


def test_what_was_measured_is_said_with_its_interval_and_counts():
    kinds = {kind.name: kind for kind in CLASSIFICATION}
    assert set(MEASURED) == {"classification", "writing"}
    for task, of in MEASURED.items():
        assert set(of) <= {LOWER_RANK, HALF, FREEZING}
        assert all(one.low <= one.value <= one.high and one.seeds >= 3 for one in of.values()), task
    half = MEASURED["classification"][HALF]
    between = f"{100 * half.low:+.1f} to {100 * half.high:+.1f}, {half.tasks} tasks"
    assert kinds[HALF].risk == f"{100 * half.value:+.1f} points vs all layers ({between})"


def test_the_page_has_the_table_that_the_advice_is_made_from():
    lines = (ROOT / "docs" / "advise.md").read_text().splitlines()
    for order in (CLASSIFICATION, WRITING):
        rows = [f"| {kind.name} | {kind.risk} |" for kind in order]
        assert any(lines[at : at + len(rows)] == rows for at in range(len(lines)))


def test_of_a_classification_the_half_comes_before_freezing_of_a_decoder_behind_it():
    places = {kind: Situation(kind, 64, 12) for kind in ("classification", "regression", "instruction", "text")}
    assert places["classification"].place(HALF) < places["classification"].place(FREEZING)
    assert places["regression"].order == places["classification"].order
    assert places["instruction"].place(FREEZING) < places["instruction"].place(HALF)
    assert places["text"].order == places["instruction"].order


@pytest.mark.parametrize("kind", ["classification", "instruction"])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 6, 30])
def test_no_layers_are_weighed_twice_at_the_same_settings(kind, num_layers):
    situation, limits = Situation(kind, 64, num_layers), Limits(params="1")
    weighed = list_variants(situation, TRAIN, limits)
    assert weighed[0].layers == tuple(range(num_layers))
    keys = [(one.mask, one.train) for one in weighed]
    assert len(set(keys)) == len(keys)
    assert len({one.name for one in weighed}) == len(weighed)
    places = [situation.place(one.kind) for one in weighed]
    assert places == sorted(places)


def test_each_candidate_has_its_own_default_rate_unless_one_is_given(advised, prepared, monkeypatch):
    recipe, rows, prices = prepared
    rates = {one.variant.kind: one.variant.train.learning_rate for one in advised(params="1M").priced}
    assert rates[ALL] == default_rate(TRAIN, Trained("classification", 32, 4, 4))
    assert rates[HALF] == default_rate(TRAIN, Trained("classification", 32, 2, 4)) > rates[ALL]
    given = replace(recipe, train=replace(recipe.train, learning_rate=0.002))
    fixed = advise_with(prices, given, rows, monkeypatch)
    assert {one.variant.train.learning_rate for one in fixed.priced} == {0.002}


def test_frozen_blocks_draw_no_dropout_and_modules_have_names(advised):
    settings = {one.variant.kind: one.variant.train for one in advised().priced}
    assert {HALF, THIRD, FREEZING} <= set(settings)
    assert not any(one.prefix_dropout for one in settings.values())
    assert {one.target_modules for one in settings.values()} == {"query,value"}


def test_memory_is_that_of_the_type_that_is_trained_in(prepared, monkeypatch):
    recipe, rows, prices = prepared
    short = advising.Prices(replace(recipe, model=replace(recipe.model, dtype="bfloat16")), rows)
    assert prices.base == 2 * short.base
    whole = advise_with(short, recipe, rows, monkeypatch).recommended
    above = by_kind(advise_with(prices, recipe, rows, monkeypatch))[ALL].memory_bytes - prices.base
    assert 0 < whole.memory_bytes - short.base < above


def test_a_time_leaves_all_layers_for_what_keeps_to_it(advised):
    half = by_kind(advised())[HALF].flops
    advice = advised(time=f"{half + 0.001:.4f}")
    assert advice.recommended.variant.kind == HALF
    shorter = [one for one in advice.priced if one.variant.kind == SHORTER]
    assert all(one.fits for one in shorter)
    assert advice.priced.index(shorter[0]) > 0
    tight = advised(time="0.15")
    assert tight.recommended.variant.kind == SHORTER  # nothing else fits
    assert "not known" in tight.situation.kind(SHORTER).risk
    assert all(one.flops <= 0.15 for one in tight.priced if one.fits)


def test_a_limit_that_is_just_missed_is_named_so_that_it_then_fits(advised):
    half = by_kind(advised())[HALF].flops
    advice = advised(time=f"{half - 0.02:.3f}")
    nearest, needed = advice.just_missed
    assert nearest.variant.kind == HALF
    assert needed == {"time": pytest.approx(half)}
    (line,) = [line for line in advice_words(advice) if nearest.variant.name in line and "--time" in line]
    again = advised(time=line.partition("--time ")[2].split()[0])
    assert again.recommended.variant.kind == HALF
    assert advice_json(advice)["just_missed"]["name"] == nearest.variant.name
    assert advised(time="0.01").just_missed is None  # nothing is near


@pytest.mark.parametrize("flag", ["params", "memory", "adapter_size", "time"])
def test_every_kind_of_limit_that_is_just_missed_is_named(advised, flag):
    whole = by_kind(advised(speed=1e6))[ALL]
    least = {"memory": f"{whole.memory_bytes * MARGIN / 1000 - 100:.3f}kB", "time": f"{whole.seconds * 0.9:.3f}s"}
    least |= {"params": str(whole.parameters - 1), "adapter_size": f"{whole.adapter_bytes / 1000 - 0.001:.3f}kB"}
    advice = advised(speed=1e6, **{flag: least[flag]})
    if advice.recommended.variant.kind == ALL:  # smaller batches keep to a memory
        return
    name = flag.replace("_", "-")
    (line,) = [line for line in advice_words(advice) if f"--{name} " in line]
    assert advice.just_missed[0].variant.kind == ALL
    again = advised(speed=1e6, **{flag: line.partition(f"--{name} ")[2].split()[0]})
    assert again.recommended.variant.kind == ALL


def test_what_is_left_is_offered_where_it_fits(advised):
    advice = advised(memory="1GB", time="2.5")
    assert advice.recommended.variant.kind == ALL
    offered = {one.variant.name: one for one in advice.spare}
    assert set(offered) == {"all-linear modules", "rank 32", "4 epochs"}
    assert offered["all-linear modules"].parameters > advice.recommended.parameters
    assert offered["4 epochs"].flops == pytest.approx(2, rel=0.05)
    assert offered["rank 32"].variant.train.alpha == 64  # the same scale
    assert all(any(name in line for line in advice_words(advice)) for name in offered)
    assert {one["variant"]["name"] for one in advice_json(advice)["spare"]} == set(offered)
    assert not any("epochs" in one.variant.name for one in advised(memory="1GB").spare)  # nobody gave a time
    assert "all-linear modules" not in {one.variant.name for one in advised(params="3000").spare}


@pytest.mark.parametrize(
    "limits", [{}, {"time": "0.6"}, {"time": "2.5", "memory": "1GB"}, {"params": "900"}, {"time": "0.15"},
               {"device_name": "RTX 4060 Ti 16GB", "time": "0.6"}, {"device_name": "T4", "time": "2.5"},
               {"memory": "50kB"}, {"memory": "50kB", "time": "0.001", "params": "1", "adapter_size": "1kB"}]
)  # fmt: skip
def test_an_advice_fits_on_one_screen(advised, limits):
    lines = advice_words(advised(**limits))
    assert len(lines) < LINES
    assert max(map(len, lines)) <= WIDTH


def test_the_screen_names_every_setting_and_the_price(advised):
    advice = advised(time="0.7")
    text, settings = " ".join(advice_words(advice)), advice.recommended.variant.train
    facts = [
        "lora",
        "query,value",
        "ank 8",
        "scale 2",
        "alpha 16",
        f"{settings.learning_rate:g}",
        "warm-up",
        "2 epochs",
    ]
    facts += [
        "batch 8 x 1",
        "dropout 0",
        "no dropout below layer 2",
        "(2 to 3)",
        f"{advice.recommended.flops:.2f}",
    ]
    assert [fact for fact in facts if fact not in text] == []
    assert text.count("Risk") == 1


def test_hours_count_by_the_speed_of_the_machine(advised):
    whole = by_kind(advised(speed=1e6))[ALL].seconds
    assert by_kind(advised(speed=2e6))[ALL].seconds == pytest.approx(whole / 2)
    assert advised(speed=1e6, time=f"{whole * 1.01:.6f}s").recommended.variant.kind == ALL
    assert advised(speed=1e6, time=f"{whole * 0.99:.6f}s").recommended.variant.kind != ALL


def test_parameters_and_sizes_are_kept_by_lower_ranks(advised):
    whole = by_kind(advised())[ALL].parameters
    advice = advised(params=str(whole - 1))
    assert advice.recommended.variant.name == "all layers at rank 4"
    assert advice.recommended.variant.train.alpha == 8  # as large updates as before
    small = advised(adapter_size=f"{4 * advice.recommended.parameters / 1000 - 0.001:.3f}kB")
    assert small.recommended.variant.name == "all layers at rank 2"


def test_a_memory_is_kept_by_accumulating_then_by_checkpointing(advised):
    whole = by_kind(advised())[ALL]
    advice = advised(memory=f"{whole.memory_bytes * MARGIN / 1000 - 0.01:.3f}kB")
    chosen = advice.recommended
    assert chosen.variant.kind == ALL
    assert chosen.variant.train.batch_size < 8
    assert chosen.variant.train.batch_size * chosen.variant.train.gradient_accumulation == 8
    assert chosen.memory_bytes * MARGIN <= advice.limits.memory_bytes < whole.memory_bytes * MARGIN
    assert chosen.variant.train.steps(40) == TRAIN.steps(40)  # the same training
    settings = chosen.variant.train
    batch = f"batch {settings.batch_size} x {settings.gradient_accumulation}"
    assert any(batch in line for line in advice_words(advice))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp", "zero3"])
def test_several_devices_hold_their_own_parts(prepared, monkeypatch, sharding):
    recipe, rows, alone = prepared
    devices = Devices(4, sharding)
    monkeypatch.setattr(advising.Prices, "measured_pace", lambda *_: 1e9)
    advice = advise(recipe, rows, Limits(), devices=devices)
    planner, adapted = Planner(alone.model, alone.stack, LoraConfig(r=8, lora_alpha=16)), range(alone.stack.num_layers)
    longest = StepSize("classification", TRAIN.batch_size // 4, max(map(len, rows.train.examples)))
    held = memory_of_device(alone.base, planner.step(adapted, longest), alone.model, alone.stack, devices)
    chosen = advice.recommended
    assert chosen.memory == held
    assert chosen.flops == 1.0  # of all layers, on as many devices
    assert chosen.seconds == pytest.approx(advise_with(alone, recipe, rows, monkeypatch).recommended.seconds / 4)
    words = " ".join(" ".join(advice_words(advice)).split())
    assert f"on each of 4 devices ({sharding})" in words
    assert "4 times as fast as one" in words
    assert advice_json(advice)["shared_by"] == {"devices": 4, "sharding": sharding}
    assert "on 4 times this device, estimated" in advice_page(advice)


def test_the_last_line_trains_on_as_many_devices(prepared, monkeypatch):
    recipe, rows, _ = prepared
    monkeypatch.setattr(advising.Prices, "measured_pace", lambda *_: 1e9)
    said = {}
    for way in ("ddp", "fsdp", "zero3"):
        devices = Devices(2, way)
        advice = advise(replace(recipe, seed=3), rows, Limits(time="0.8"), devices=devices)
        said[way] = next_command(advice, devices, Path("out")).partition(": ")[2].split()
    assert said["ddp"] == ["torchrun", "--nproc-per-node", "2", "-m", "layersift", "run", "out/recipe.yaml"]
    assert said["zero3"] == ["layersift", "export", "out", "--to", "axolotl"]
    start = said["fsdp"].index("train")
    assert said["fsdp"][:start] == ["torchrun", "--nproc-per-node", "2", "-m", "layersift"]
    context = get_command(app).commands["train"].make_context("train", said["fsdp"][start + 1 :])
    given, chosen = context.params, advice.recommended.variant
    assert (given["layers"], given["sharding"], given["seed"]) == (layers_told(chosen.layers), "fsdp", 3)
    assert (float(given["learning_rate"]), given["batch_size"]) == (chosen.train.rate, chosen.train.batch_size)


def test_batches_that_several_devices_share_are_halved_no_further_than_a_row_each(prepared, monkeypatch):
    recipe, rows, _ = prepared
    monkeypatch.setattr(advising.Prices, "measured_pace", lambda *_: 1e9)
    advice = advise(recipe, rows, Limits(memory="1kB"), devices=Devices(4))
    assert {one.variant.train.batch_size for one in advice.priced} == {4}
    ways = {way.variant.train.batch_size for option in advice.other_limits.options for way in option.ways}
    assert ways == {4, 8}


@pytest.mark.slow
def test_where_nothing_fits_it_is_said_by_how_much_and_what_would_help(advised):
    advice = advised(memory="50kB")
    assert advice.recommended is None
    least = min(advice.priced, key=lambda one: one.memory_bytes)
    packed, half, quarter = advice.remedies
    assert [one.flag.split()[0] for one in advice.remedies] == ["--quantization", "--max-length", "--max-length"]
    assert quarter.memory.expected < half.memory.expected < least.memory_bytes > packed.memory.expected
    assert not any(one.fits for one in advice.remedies)
    assert advice_words(advice)[0].startswith(f"It will not fit, by {tell_bytes(least.memory.high - 50_000)}: ")
    assert all(any(miss.startswith("memory: ") for miss in one.misses) for one in advice.priced)
    enough = advised(memory=f"{least.memory.high / 1000 - 0.1:.1f}kB")
    helpful = [one for one in enough.remedies if one.fits]
    said = " ".join(map(str.strip, advice_words(enough)))  # lines are wrapped
    would = said[said.index("These would: ") :]
    assert helpful
    assert all(one.flag in would for one in helpful)
    nothing = advised(params="10")
    assert nothing.missed[0].startswith("the least parameters")
    assert not nothing.remedies
    assert advice_json(nothing)["words"] == advice_words(nothing)


def test_the_memory_is_told_by_component_between_a_low_and_a_high(advised):
    advice = advised(memory="1GB")
    chosen = advice.recommended
    memory, parts = chosen.memory, chosen.memory.components()
    assert sum(parts.values()) - parts["margin"] == memory.expected == chosen.memory_bytes
    assert memory.adapters == memory.gradients == 4 * chosen.parameters
    assert memory.optimizer == 2 * memory.adapters
    assert memory.low < memory.expected < memory.high == memory.expected + memory.margin
    said = " ".join(advice_words(advice)).partition("It will fit: ")[2]
    assert all(name in said for name in ("base", "adapters", "gradients", "AdamW", "activations"))
    assert advice_json(advice)["variants"][0]["memory"] == memory.to_json()
    assert any(line.startswith("Memory: ") for line in advice_words(advised()))


def test_a_device_elsewhere_is_estimated_and_nothing_is_timed(advised):
    device = find_device("RTX 4090")
    advice = advised(speed=0, device_name="RTX 4090")
    chosen, flops = advice.recommended, 0.3 * 82.6e12
    assert advice.flops_a_second == pytest.approx(flops)
    assert chosen.seconds * flops == pytest.approx(advised(speed=1.0).recommended.seconds)
    (said,) = [line for line in advice_words(advice) if "estimates" in line]
    assert all(fact in said for fact in ("30%", "RTX 4090", "82.6 TFLOP/s", "float32"))
    assert advice_json(advice)["estimated_on"]["peak"] == device.peak("float32")
    assert advice_json(advised())["estimated_on"] is None
    assert find_device("T4").peak("bfloat16") == find_device("T4").peak("float32") < find_device("T4").peak("float16")


def test_what_is_advised_is_what_a_run_then_trains(advised, tmp_path):
    for number, limits in enumerate(({"params": "900"}, {"time": "0.75"})):
        advice = advised(**limits)
        values = advised_recipe(advice, advice.recommended.variant) | {"output": str(tmp_path / f"run-{number}")}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        recipe = read_recipe(tmp_path / "recipe.yaml")
        assert recipe.train == advice.recommended.variant.train
        assert set(values["train"]) == {f.name for f in fields(TrainSettings)}  # none is left to a default
        assert None not in (values["train"]["learning_rate"], values["train"]["target_modules"])
        found = run(replace(recipe, select=replace(recipe.select, max_samples=16)))
        (trained,) = next(results for name, results in found.variants.items() if name != "base")
        assert trained.cell.mask == advice.recommended.variant.mask
        assert trained.trainable_parameters == advice.recommended.parameters
        assert trained.adapter_bytes == pytest.approx(advice.recommended.adapter_bytes, abs=4000)  # names, too


@pytest.mark.parametrize("classes", [3, 7])
def test_a_head_is_counted_with_the_classes_of_the_data(bert_directory, tmp_path, classes):
    rows = [{"text": f"w{i % 7} w{i % 11}", "label": f"c{i % classes}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe(ModelSource(bert_directory), DataSettings(str(tmp_path / "rows.jsonl")), "run", train=TRAIN)
    _, _, prepared = checked(recipe, Reporter())
    model = advising.Prices(recipe, prepared).model
    assert {model.config.num_labels, *(len(model.classifier.weight), len(model.classifier.bias))} == {classes}


def test_the_command_line_advises_writes_and_overwrites_nothing(bert_directory, data, tmp_path):
    (tmp_path / "out.partial").mkdir()  # of one that was killed while it wrote
    (tmp_path / "out.partial" / "advice.json").write_text("{")
    words = ["advise", bert_directory, "--data", data, "--time", "0.7", "--batch-size", "8", "-o", tmp_path / "out"]
    said = layersift(*words)
    assert said.returncode == 0, said.stderr
    assert "Train " in said.stdout
    assert f"layersift run {tmp_path / 'out' / 'recipe.yaml'}" in said.stdout
    kept = json.loads((tmp_path / "out" / "advice.json").read_text())
    assert kept["tried_on_these_data"] is False
    assert {p.name for p in tmp_path.iterdir()} == {"out", "out.partial"}  # which may be anybody's
    assert (tmp_path / "out.partial" / "advice.json").read_text() == "{"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"advice.json", "advice.html", "recipe.yaml"}
    assert kept["flops_a_second"] > 0
    assert [c["fits"] for c in kept["variants"]].count(True) >= 2
    answer = said.stdout.split("training variants\n")[1].splitlines()
    assert answer[:-1] == kept["words"]
    assert len(answer) <= LINES
    again = layersift(*words)
    assert again.returncode == 2
    assert "exists" in again.stderr
    bad = layersift(*words[:4], "--time", "soon", "-o", tmp_path / "other")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "time 'soon'" in bad.stderr
    assert not (tmp_path / "other").exists()


def test_the_first_line_comes_before_torch_is_loaded(bert_directory, data, tmp_path):
    words = [sys.executable, "-X", "importtime", "-u", "-m", "layersift", "advise", bert_directory, "--data", data]
    with subprocess.Popen(
        [*words, "-o", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        seen = []
        for line in running.stdout:
            seen.append(line)
            if line.startswith("reading "):
                break
        running.kill()
    assert str(bert_directory) in seen[-1]
    assert data in seen[-1]
    loaded = {line.rpartition("|")[2].strip() for line in seen}
    assert loaded.isdisjoint({"torch", "numpy", "transformers", "peft"})
