"""The report: a page that a real browser draws without a network, its pictures, its tables, and PEFT's layout."""

import html
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import browse, works
from layersift.config.recipe import DataSettings, ModelSource, Recipe
from layersift.evaluation.metrics import Majority
from layersift.experiment.choices import ALL
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Curve, Curves, Judgement
from layersift.experiment.oracle import Oracle, Placed, Subset
from layersift.experiment.prepare import Scored, Scoring, between_positions, overlap, rank_correlation
from layersift.experiment.rates import Rate
from layersift.models.stacks import BlockStack
from layersift.records.reading import DataRecord
from layersift.records.selection import LayerScores
from layersift.report import charts, write
from layersift.report.tables import caption, groups_of, headings, verdict_first, verdict_rows
from layersift.report.write import write_comparison, write_oracle
from layersift.score.stability import Stability
from layersift.statistics.intervals import Interval, pareto
from variants import TRAIN, choice_of

CHARTS = (
    "score-parameters",
    "score-time",
    "score-memory",
    "curves",
    "importance",
    "selections",
    "convergence",
    "agreement",
    "similarity",
)


def scored(name, importance, direction="high", sure=True):
    undefined = {i: "its input is constant over the sample" for i, v in enumerate(importance) if v is None}
    scores = LayerScores(name, tuple(importance), undefined, (0.9, 0.1, 0.1, 0.1), 64, 1.5, direction)
    low = tuple(None if v is None else v - 0.05 for v in importance)
    high = tuple(None if v is None else v + 0.05 for v in importance)
    stability = Stability(low, high, (0.1, 0.6, 0.5, 0.8), 2, 200, 0.95, (0.9, 0.6, 0.5, 0.8), 64) if sure else None
    return Scored(scores, stability, 2, ((16, 0.5), (32, 0.75), (64, 1.0)) if sure else ())


def judged(name, mask, score, parameters, seconds, failures=()):
    found = Interval(score, score - 0.02, score + 0.02, "3 seeds")
    apart = Interval(score - 0.8, score - 0.83, score - 0.77, "3 seeds")
    return Judgement(
        choice_of(name, 2, [mask], seconds=2.0),
        found,
        apart,
        apart,
        parameters,
        seconds,
        2**28,
        1000.0,
        0.5,
        None,
        {"accuracy": score},
        {0: [score]},
        "",
        tuple(failures),
        "no difference",
    )


def curve(name, mask, flops, scores, from_all, reaches):
    return Curve(choice_of(name, 2, [mask], seconds=2.0), flops, scores, from_all, reaches)


@pytest.fixture
def comparison():
    recipe = Recipe(ModelSource("a <model> & more"), DataSettings("data.jsonl"), "out", train=TRAIN)
    scoring = Scoring(
        stack=BlockStack("blocks", "encoder", 4, ("Block",) * 4),
        kind="classification",
        scored=(
            scored("cka", [None, 0.2, 0.1, 0.4]),
            scored("kappa", [0.3, 0.1, 0.5, 0.2], "low"),
            scored("last", [0, 1, 2, 3], sure=False),
        ),
        positions={"mean": (1, 3), "last": (2, 3)},
        matrix=tuple(tuple(0.9 ** abs(i - j) for j in range(5)) for i in range(5)),
        left_out={"pilot": "too few steps"},
        data=DataRecord("data.jsonl", 100, "abc"),
        samples=64,
    )
    return Comparison(
        recipe=recipe,
        scoring=scoring,
        metric="accuracy",
        seeds=(0, 1, 2),
        rows=(
            judged("cka", "0101", 0.83, 100, 30),
            judged("kappa", "0101", 0.83, 100, 30),
            judged("last", "0011", 0.82, 100, 20, ["its process ended with exit code -9"]),
            judged("random", "1001", 0.80, 100, 35),
            judged("all", "1111", 0.85, 200, 40),
            judged("all, matched rank", "1111", 0.84, 100, 40),
            judged("base", "", 0.2, None, None),
        ),
        curves=Curves(
            (
                curve("cka", "0101", (0.2, 0.5, 0.7), (0.6, 0.75, 0.8), Interval(-0.02, -0.05, 0.01, "3 seeds"), None),
                curve(ALL, "1111", (0.3, 0.7, 1.0), (0.6, 0.8, 0.86), None, 0.975),
            ),
            0.855,
            ("last",),
        ),
        not_planned={},
        rates={"lora, 2 layers": Rate(1e-3, {1e-4: 0.7, 1e-3: 0.8})},
        contents={"model": "sha256:m", "train": "abc", "test": "def"},
        made=({"versions": {"torch": "1"}, "device": "cpu", "threads": 1},),
    )


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take seconds: for what else there is to be seen."""
    monkeypatch.setattr(write, "pictures", lambda chart: {})


@pytest.mark.slow
def test_a_real_browser_draws_every_chart_without_a_network(comparison, tmp_path):
    if not works(tmp_path):
        pytest.skip("no Chromium or Chrome that starts on this machine")
    page = write_comparison(comparison, tmp_path / "out")
    drawn = browse(page, tmp_path / "profile", "--window-size=1100,4500", picture=tmp_path / "wide.png")
    body = drawn[drawn.index("<body") :]
    assert len(re.findall(r'<svg[^>]*class="marks"', body)) == len(CHARTS)
    assert "vega-error" not in body
    assert body.count('<select name="criterion"') == 1
    light = np.asarray(Image.open(tmp_path / "wide.png").convert("RGB")).reshape(-1, 3)
    assert light.mean() > 230
    assert len(np.unique(light, axis=0)) > 200  # the charts' colours
    browse(
        page,
        tmp_path / "profile2",
        "--window-size=400,1200",
        "--blink-settings=preferredColorScheme=0",
        picture=tmp_path / "dark.png",
    )
    dark = np.asarray(Image.open(tmp_path / "dark.png").convert("RGB"))
    assert dark.shape[1] == 400
    assert dark.mean() < 80


def test_the_page_holds_everything_and_fetches_nothing(comparison, tmp_path, undrawn):
    page = write_comparison(comparison, tmp_path / "out").read_text()
    assert not re.findall(r'(?:src|href)\s*=\s*["\']', page[: page.index("<script")])
    assert "<link" not in page
    assert "a &lt;model&gt; &amp; more" in page
    for text in (
        "cka (0101); kappa (0101); last (0011)",
        "data.jsonl: 7 rows in one table.",
        "its input is constant over the sample",
        "one dimension holds most of the variance behind layers 0",
        "its process ended with exit code -9",
        "To run it again",
        "Without a curve, since a training of theirs failed or was not looked at: last.",
        "pilot was left out: too few steps.",
        "prefers-color-scheme: dark",
        'name="viewport"',
    ):
        assert text in page, text
    for name in CHARTS:
        assert f'id="{name}"' in page


def test_what_may_be_said_is_a_cell_for_each_outcome(comparison):
    cka, kappa, last, chance, *others = comparison.rows
    kappa = replace(kappa, from_all=None, from_random=None, same_as="cka")
    rows = (apart(cka, -0.01, 0.02), kappa, apart(last, -0.03, 0.01), apart(chance, 0.03, 0.01))
    found = replace(comparison, rows=(*rows, *others))
    [group] = groups_of(found)
    table = {
        row[0]: dict(zip(header, row, strict=True)) for header, *own in [verdict_rows(found, group)] for row in own
    }
    assert table["all"] == {
        "against": "all",
        "better": "random (1001)",
        "no significant difference": "cka, kappa (0101)",
        "worse": "last (0011)",
    }
    lone = replace(found, rows=(replace(rows[2], from_all=Interval(-0.02, None, None, "one seed")), *rows[3:], *others))
    header, *own = verdict_rows(lone, group)
    assert dict(zip(header, own[0], strict=True))["not judged"] == "last (0011)"
    assert verdict_rows(replace(found, nothing_learned="Nothing was learned."), group) == []


def test_the_most_common_class_is_a_line_where_it_is_near_the_scores(comparison):
    def lines(accuracy, metric="accuracy"):
        of = replace(comparison, majority=Majority("a'b", {"": accuracy}), metric=metric)
        return "always" in json.dumps(charts.tradeoff(of, "parameters").to_dict())

    assert [lines(0.79), lines(0.75)] == [True, True]
    assert not lines(0.3)  # a line there would press all points into one corner
    assert not lines(0.79, "f1")
    assert "always" not in json.dumps(charts.tradeoff(comparison, "parameters").to_dict())


def apart(row, value, half, flops=None):
    choice = replace(row.choice, flops=flops)
    return replace(row, choice=choice, from_all=Interval(value, value - half, value + half, "3 seeds"))


def test_the_verdict_comes_first_and_names_what_costs_least(comparison, tmp_path, undrawn):
    cka, kappa, last, chance, *others = comparison.rows
    cka, kappa = apart(cka, -0.01, 0.02, 0.7), apart(kappa, -0.005, 0.02, 0.9)
    rows = (cka, kappa, apart(last, -0.03, 0.01, 0.5), apart(chance, -0.01, 0.03, 0.7), *others)
    page = write_comparison(replace(comparison, rows=rows), tmp_path / "o")
    said = (
        "The cheapest with no significant loss is cka (0101), at 0.70 of the FLOPs: no significant difference from "
        "training all layers (-1.0 points, -3.0 to +1.0, 3 seeds)."
    )
    body = page.read_text()
    assert body.index(f'<p class="verdict">{said}</p>') < body.index("<h2>")
    assert (tmp_path / "o" / "tables.md").read_text().startswith(f"{said}\n")
    rows = (cka, apart(kappa, 0.02, 0.01, 0.6), *rows[2:])
    (said,) = verdict_first(replace(comparison, rows=rows))
    assert said.startswith("The cheapest with no significant loss is kappa (0101), at 0.60 of the FLOPs: more than")


def test_a_verdict_where_everything_lost_and_where_nothing_can_be_said(comparison):
    for least, mask in (("last", "0011"), ("all, matched rank", "1111")):  # the latter stands last in its table
        lost = tuple(apart(row, -0.02 if row.choice.name == least else -0.06, 0.01) for row in comparison.rows)
        assert verdict_first(replace(comparison, rows=lost)) == [
            f"Everything else scored less than training all layers; {least} ({mask}) lost least, 2.0 points."
        ]
    unknown = tuple(replace(row, from_all=Interval(-0.02, None, None, "one seed")) for row in comparison.rows)
    assert verdict_first(replace(comparison, rows=unknown)) == []
    several = tuple(replace(row, choice=row.choice.with_settings(method="dora")) for row in lost)
    assert [said.split(":")[0] for said in verdict_first(replace(comparison, rows=lost + several))] == [
        "2 of 4 layers, lora",
        "2 of 4 layers, dora",
    ]


def test_a_row_that_only_a_wide_interval_keeps_from_losing_is_not_named_as_the_cheapest(comparison):
    cka, kappa, last, chance, *others = comparison.rows
    others = [row if row.from_all is None else apart(row, -0.06, 0.01) for row in others]
    lost, wide = apart(cka, -0.01, 0.008, 0.7), apart(chance, -0.025, 0.14, 0.6)
    rows = (lost, apart(kappa, -0.03, 0.01, 0.9), apart(last, -0.03, 0.01, 0.5), wide, *others)
    assert verdict_first(replace(comparison, rows=rows)) == [
        "Everything else scored less than training all layers, or has an interval too wide to tell (random); "
        "cka (0101) lost least of what is seen to lose, 1.0 points, at 0.70 of the FLOPs."
    ]
    near = apart(chance, -0.005, 0.14, 0.6)  # wide, too, but nothing that lost did better
    (said,) = verdict_first(replace(comparison, rows=(*rows[:3], near, *others)))
    assert said.startswith("The cheapest with no significant loss is random")


def test_where_nothing_was_learned_that_comes_first_and_nothing_is_ranked(comparison, tmp_path, undrawn):
    said = "Nothing was learned: no row does."
    none = replace(comparison, nothing_learned=said)
    page = write_comparison(none, tmp_path / "o").read_text()
    assert page.index(f'<p class="verdict">{said}</p>') < page.index("<h2>")
    assert "Pareto" not in page[page.index("const CHARTS") :]
    assert "no difference" not in page[: page.index("<script")]
    tables = (tmp_path / "o" / "tables.md").read_text()
    assert tables.startswith(f"{said}\n")
    names = [line.split(" | ")[0].removeprefix("| ") for line in tables.splitlines() if line.startswith("| ")]
    assert names[2 : 2 + len(none.rows)] == [row.choice.name for row in none.rows]  # as they were asked for
    assert json.loads((tmp_path / "o" / "compare.json").read_text())["nothing_learned"] == said
    assert "Pareto" in write_comparison(comparison, tmp_path / "other").read_text()


def test_the_caption_says_the_rates_of_the_rows(comparison):
    assert "learning rate 0.001;" not in caption(comparison)
    assert "learning rate 0.001." in caption(comparison)
    rows = tuple(
        replace(row, choice=row.choice.with_settings(learning_rate=2e-3 if row.choice.name == "last" else 1e-3))
        for row in comparison.rows
    )
    differing = replace(comparison, rows=rows)
    assert "learning rate 0.001." not in caption(differing)
    assert "0.001 to 0.002" in caption(differing)
    (_, table), *_ = headings(differing)
    place = table[0].index("rate")
    assert {row[0]: row[place] for row in table[1:]} == {
        row.choice.name: "-" if row.choice.name == "base" else f"{row.choice.train.learning_rate:g}" for row in rows
    }


def test_masks_are_cells_that_keep_their_digits(comparison, tmp_path, undrawn):
    page = write_comparison(comparison, tmp_path / "o").read_text()
    assert (
        '<td><span class="mask" role="img" title="0101" aria-label="0101"><i></i><i class="on"></i><i></i>'
        '<i class="on"></i></span></td>' in page
    )
    assert "<td>0101</td>" not in page
    assert "<td>100</td>" in page  # a number of parameters, whose digits are those of masks
    assert "</span>, rank 8</td>" in page


def test_points_carry_their_names_in_pictures(comparison, tmp_path):
    write_comparison(comparison, tmp_path / "o")
    drawn = ET.parse(tmp_path / "o" / "charts" / "score-parameters.svg").getroot()
    texts = {element.text for element in drawn.iter() if element.tag.endswith("text")}
    assert {"cka, kappa", "last", "all"} <= texts


def test_pictures_tables_and_json_lie_beside_it(comparison, tmp_path):
    write_comparison(comparison, tmp_path / "out")
    for name in CHARTS:
        with Image.open(tmp_path / "out" / "charts" / f"{name}.png") as picture:
            assert picture.width > 800
        assert ET.parse(tmp_path / "out" / "charts" / f"{name}.svg").getroot().tag.endswith("svg")
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "| cka | 0101 | 83.0 ± 2.0 |" in tables
    assert tables.index("| cka |") < tables.index("| random |") < tables.index("| all |")
    values = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert values["schema_version"] == 2
    assert values["rows"][0]["score"]["value"] == 0.83
    assert values["scored"][1]["layers"] == [1, 3]  # kappa: the lowest two
    assert values["recipe"]["model"]["name"] == "a <model> & more"


def test_results_in_the_layout_of_pefts_suite(comparison, tmp_path, undrawn):
    write_comparison(comparison, tmp_path / "out")
    files = sorted(p.stem for p in (tmp_path / "out" / "peft-method-comparison").iterdir())
    assert files == [
        "lora-2-all",
        "lora-2-all-matched-rank",
        "lora-2-cka",
        "lora-2-kappa",
        "lora-2-last",
        "lora-2-random",
    ]
    values = json.loads((tmp_path / "out" / "peft-method-comparison" / "lora-2-last.json").read_text())
    assert set(values) == {"run_info", "train_info", "meta_info"}
    assert set(values["run_info"]) == {
        "created_at",
        "total_time",
        "experiment_name",
        "peft_branch",
        "train_config",
        "peft_config",
        "error_msg",
    }
    assert set(values["train_info"]) == {
        "accelerator_memory_reserved_avg",
        "accelerator_memory_max",
        "accelerator_memory_reserved_99th",
        "train_time",
        "file_size",
        "num_trainable_params",
        "num_total_params",
        "status",
        "metrics",
    }
    assert {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"} == set(values["meta_info"])
    assert values["train_info"]["num_trainable_params"] == 100
    assert values["run_info"]["peft_config"]["layers"] == [[2, 3]]
    assert values["run_info"]["peft_config"]["peft_type"] == "LORA"
    (last,) = values["train_info"]["metrics"]
    assert last["test accuracy"] == 0.82
    # The suite makes whole numbers of these, and dates of that one, so none may be missing.
    info, run = values["train_info"], values["run_info"]
    whole = [info[f"accelerator_memory_{name}"] for name in ("reserved_avg", "max", "reserved_99th")]
    whole += [info["file_size"], last["train samples"], last["train total tokens"]]
    assert pd.Series(whole).astype(int).tolist() == [-1, 2**28, -1, 1000, 100, -1]
    assert pd.to_datetime(pd.Series([run["created_at"]], dtype="string")).notna().all()
    versions = {"peft", "transformers", "datasets", "torch", "bitsandbytes"}
    assert {f"{name}-version" for name in versions} <= set(values["meta_info"]["package_info"])


def test_rows_that_are_not_asked_for_any_more_leave_the_export(comparison, tmp_path, undrawn):
    write_comparison(comparison, tmp_path / "out")
    write_comparison(replace(comparison, rows=comparison.rows[:2]), tmp_path / "out")
    left = sorted(p.stem for p in (tmp_path / "out" / "peft-method-comparison").iterdir())
    assert left == ["lora-2-cka", "lora-2-kappa"]


def test_every_table_of_the_page_says_what_it_is_of(comparison, tmp_path, undrawn):
    more = tuple(replace(row, choice=row.choice.with_settings(method="dora")) for row in comparison.rows)
    page = write_comparison(replace(comparison, rows=comparison.rows + more), tmp_path / "o").read_text()
    assert "<h3>2 of 4 layers, lora</h3>" in page
    assert "<h3>2 of 4 layers, dora</h3>" in page


def test_what_a_reader_should_know_stands_under_degenerate(comparison, tmp_path, undrawn):
    grid = replace(comparison.recipe.compare, retention="x.jsonl")
    other = {"versions": {"torch": "2"}, "device": "cuda:0", "threads": 4}
    changed = replace(comparison, recipe=replace(comparison.recipe, compare=grid), made=(*comparison.made, other))
    page = write_comparison(changed, tmp_path / "o").read_text()
    assert "0.001, the learning rate for lora, 2 layers, is at the edge of those tried" in page
    assert "this model does not write" in page
    assert "Trainings were made in 2 environments: cpu, 1 threads, torch 1; cuda:0, 4 threads, torch 2." in page
    assert "sha256:m" in page


def test_the_oracles_page(tmp_path):
    recipe = Recipe(ModelSource("m"), DataSettings("d.jsonl"), "out")
    subsets = (Subset("0011", (0.9, 0.88)), Subset("0101", (0.85, 0.86)), Subset("1100", (0.5, 0.52)))
    placed = (Placed("last", "0011", 0.89, 100.0, 0.0, 1, 3), Placed("cka", "0101", 0.855, 50.0, 0.035, 2, 3))
    out = {"pilot": "the steps are too few"}
    found = Oracle(recipe, "accuracy", 2, 4, (0, 1), 6, subsets, placed, 0.91, 1e-3, 3e-3, 0.01, {"train": "abc"}, out)
    found = replace(found, majority=Majority("good", {"": 0.51}))
    page = write_oracle(found, tmp_path / "o").read_text()
    assert "3 of 6 subsets of 2 of 4 layers, 2 seeds. Best 0011: 89.0, mean 75.2, worst 51.0 points." in page
    assert "What lies beyond those trained is not known" in page
    assert "For comparison: always 'good', the most common class in training: accuracy 0.5100." in html.unescape(page)
    assert "pilot: the steps are too few." in page
    assert "| cka | 0101 | 85.5 | 2 of 3 | 50 | 3.5 |" in (tmp_path / "o" / "oracle.md").read_text()
    assert json.loads((tmp_path / "o" / "oracle.json").read_text())["placed"][0]["criterion"] == "last"
    drawn = (tmp_path / "o" / "charts" / "subsets.svg").read_text()
    assert drawn.count('aria-roledescription="circle"') == len(subsets)
    assert "chosen by a criterion" in drawn


def test_the_pareto_front():
    assert pareto([(1, 5), (2, 6), (2, 5), (3, 6), (4, 9)]) == [True, True, False, False, True]
    assert pareto([(1, 5), (1, 5)]) == [True, True]


def test_agreement():
    a, b = scored("a", [0.4, 0.3, 0.2, 0.1]).scores, scored("b", [1, 2, 3, 4]).scores
    assert rank_correlation(a, b) == pytest.approx(-1)
    low = scored("b", [1, 2, 3, 4], "low").scores
    assert rank_correlation(a, low) == pytest.approx(1)
    assert rank_correlation(a, scored("c", [None, None, 3, 4]).scores) is None
    assert rank_correlation(a, scored("c", [1, 1, 1, 1]).scores) is None
    assert overlap((1, 2, 3), (2, 3, 4)) == pytest.approx(2 / 3)
    assert between_positions({"mean": (1, 3), "last": (2, 3)})[1] == ["mean", "100%", "50%"]
