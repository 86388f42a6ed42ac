"""advice.html: what its sliders answer is what `advise` answers within the same limits."""

import html
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from browser import browse, works
from layersift.advise import adviser as advising
from layersift.advise.adviser import advise
from layersift.advise.candidates import SHORTER
from layersift.advise.other_limits import weigh_other_limits
from layersift.advise.trial import Round, Trial, Tried
from layersift.config.limits import Limits
from layersift.config.recipe import DataSettings, ModelSource, Recipe
from layersift.config.train import TrainSettings
from layersift.experiment.prepare import checked
from layersift.plan.memory import MARGIN
from layersift.progress import Reporter
from layersift.report.advice_page import advice_page
from layersift.report.advice_text import advised_recipe
from layersift.statistics.intervals import Interval

PACE = 1e9
# Moves both sliders through some of their positions, and keeps what the page then answers.
MOVES = """
<script>
const seen = [];
for (let m = 0; m <= DATA.memories.length; m += 6) for (let t = 0; t <= DATA.shares.length; t += 2) {
  memory.value = m;
  time.value = t;
  memory.dispatchEvent(new Event("input"));
  const best = document.querySelector(".best .name"), out = document.querySelectorAll("#variants .out").length;
  const size = at("recipe").hidden ? null : at("recipe").textContent;
  seen.push([DATA.memories[m]?.value ?? null, DATA.shares[t]?.value ?? null, best && best.firstChild.textContent,
    at("what").textContent, size, out]);
}
at("reset").click();
document.body.append(element("pre", JSON.stringify(seen), "seen"));
</script>
"""


@pytest.fixture(scope="module")
def priced(bert_directory, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "rows<b>.jsonl"
    rows = [{"text": f"w{i % 7} w{i % 11} w{i % 5}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe(ModelSource(bert_directory), DataSettings(str(path)), "run", train=TrainSettings(batch_size=8))
    recipe, _, rows = checked(recipe, Reporter())
    return recipe, rows, advising.Prices(recipe, rows)


@pytest.fixture
def advised(priced, monkeypatch):
    recipe, rows, prices = priced
    monkeypatch.setattr(advising, "Prices", lambda *_: prices)
    monkeypatch.setattr(prices, "measured_pace", lambda _: PACE)
    return lambda **limits: advise(recipe, rows, Limits(**limits))


def with_trial(advice):
    """The advice as if a trial had been held, whose second one failed; names that a page has to escape."""
    names = [option.ways[0].variant.name for option in advice.other_limits.options]
    apart = Interval(-0.02, -0.05, 0.01, "30 rows")
    tried = (Tried(names[1], 0.9, None, 30), Tried(names[0], 0.88, apart, 30), Tried("<i>x", None, None, 30, "a < b"))
    return replace(advice, trial=Trial("accuracy", 30, 1.0, 5.0, (Round(0.5, tried),)))


def data_of(page):
    return json.loads(re.search(r"const DATA = (.*);\n", page)[1])


def test_the_page_fetches_nothing_escapes_all_and_draws_without_a_library(advised, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)  # to import them is an error
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    advice = with_trial(advised(time="0.7"))
    page = advice_page(advice)
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|fetch\(", page)
    assert set(re.findall(r"https?://[^\s\"']*", page)) == {"http://www.w3.org/2000/svg"}
    body = page[page.index("<body") : page.index("<script>\nconst DATA")]
    assert "rows<b>" not in page
    assert "rows&lt;b&gt;" in body
    assert "&lt;i&gt;x" in body
    assert "a &lt; b" in body
    assert "-2.0 (-5.0 to +1.0)" in body
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    chosen = next(o for o in data_of(page)["options"] if o["ways"][0]["name"] == advice.recommended.variant.name)
    assert yaml.safe_load(chosen["ways"][0]["recipe"]) == advised_recipe(advice, advice.recommended.variant)


def test_each_option_is_priced_as_asked_in_batches_of_one_and_checkpointed(advised, priced):
    whole = advised().other_limits.options[0]
    sizes = [(way.variant.train.batch_size, way.variant.train.gradient_checkpointing) for way in whole.ways]
    assert sizes == [(8, False), (1, False), (1, True)]
    assert all(w.variant.train.batch_size * w.variant.train.gradient_accumulation == 8 for w in whole.ways)
    # Within a memory the batch that fits it is there, too.
    tight = advised(memory=f"{whole.ways[0].memory_bytes * MARGIN / 1000 - 0.01:.3f}kB")
    given = tight.recommended.variant.train
    assert given in [way.variant.train for way in tight.other_limits.options[0].ways]
    assert 1 < given.batch_size < 8


def test_the_order_of_the_options_is_that_of_the_trial_then_of_the_table(advised, priced):
    _, _, prices = priced
    advice = advised(params="1M")
    plain = [option.ways[0].variant.name for option in advice.other_limits.options]
    trial = with_trial(advice).trial
    variants = [option.ways[0].variant for option in advice.other_limits.options]
    tried = weigh_other_limits(prices, advice.situation, variants, advice.priced, advice.limits, PACE, trial)
    assert [o.ways[0].variant.name for o in tried.options] == [plain[1], plain[0], *plain[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, {"time": "0.7"}, {"params": "2000", "time": "5s"}, {"params": "10"}])
def test_a_real_browser_answers_moved_sliders_as_advise_does(advised, monkeypatch, tmp_path, limits):
    if not works(tmp_path):
        pytest.skip("no Chromium or Chrome that starts on this machine")
    advice = advised(**limits)
    path = tmp_path / "advice.html"
    path.write_text(advice_page(advice).replace("</body>", f"{MOVES}</body>"))
    drawn = browse(path, tmp_path / "profile")
    seen = json.loads(html.unescape(re.search(r'<pre class="seen">(.*?)</pre>', drawn)[1]))
    monkeypatch.setattr(advising, "weigh_other_limits", lambda *_: None)  # takes a while each time
    kinds = set()
    for memory, share, best, what, recipe, out in seen:
        given = {"memory": None if memory is None else f"{memory / 1000:.6f}kB", "time": share and str(share)}
        expected = advised(**limits | given)
        chosen = expected.recommended
        assert best == (chosen and chosen.variant.name), (memory, share)
        if chosen is None:
            assert what == "Nothing fits."
            assert recipe is None
            continue
        kinds.add(chosen.variant.kind)
        layers = expected.num_layers - chosen.variant.layers[0]
        assert (f"last {layers} of" in what) == (1 < layers < expected.num_layers)
        train = yaml.safe_load(recipe)["train"]
        assert train["epochs"] == pytest.approx(chosen.variant.train.epochs)
        assert train["learning_rate"] == chosen.variant.train.learning_rate
        assert train["batch_size"] <= chosen.variant.train.batch_size
        assert train["batch_size"] * train["gradient_accumulation"] == 8
        assert train["gradient_checkpointing"] == chosen.variant.train.gradient_checkpointing
        assert out or "params" not in limits
    assert len(kinds) > 1 or limits == {"params": "10"}
    assert SHORTER in kinds or "params" in limits
    # Back where it began, the answer is the command's own.
    name = re.search(r'<li class="best"><div class="name">([^<]*)', drawn)
    assert (name and html.unescape(name[1])) == (advice.recommended and advice.recommended.variant.name)


@pytest.mark.slow
def test_a_real_browser_shows_it_light_dark_and_as_wide_as_a_phone(advised, tmp_path):
    if not works(tmp_path):
        pytest.skip("no Chromium or Chrome that starts on this machine")
    page = advice_page(with_trial(advised(time="0.7")))
    (tmp_path / "advice.html").write_text(page)
    dark = "--blink-settings=preferredColorScheme=0"
    for name, flags, bright in (
        ("light", ["--window-size=1200,1500"], True),
        ("dark", ["--window-size=390,2000", dark], False),
    ):
        browse(tmp_path / "advice.html", tmp_path / name, *flags, picture=tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert (pixels.mean() > 200) == bright
        assert (pixels.mean() < 80) != bright
    # A window has a least width; a frame has none.
    read = "document.body.dataset.width = this.contentDocument.documentElement.scrollWidth"
    frame = f'<iframe width="390" height="900" onload="{read}" srcdoc="{html.escape(page)}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><body>{frame}")
    drawn = browse(tmp_path / "frame.html", tmp_path / "framed")
    assert int(re.search(r'data-width="(\d+)"', drawn)[1]) <= 390  # nothing is wider than the page
