"""Each public name says what it takes, gives and raises, and has an example that does what it shows."""

import doctest
import inspect
import json
import re

import pytest

import layersift
from layersift.config.fields import Checked, meta_of, types_of
from layersift.config.recipe import DataSettings
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from training import sentences

NAMES = [name for name in layersift.__all__ if name != "__version__"]
LONG = {"Comparison", "compare", "run"}  # trainings in processes of their own
ERRORS = {name for name in NAMES if name.endswith("Error")}  # each takes the message alone
RECIPE = """\
model: model
data: rows.jsonl
output: out
train: {epochs: 1}
compare: {criteria: [cka, last], seeds: 1, random: 1}
"""


def documented(name):
    """What carries the docstring of a name: of a table, the class of its values."""
    value = getattr(layersift, name)
    return type(next(iter(value.values()))) if isinstance(value, dict) else value


def section(name, title):
    """The text of a docstring's section; None where there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", f"{inspect.getdoc(documented(name))}\n", re.MULTILINE)
    return found and found[1]


def arguments(name):
    """The parameters that its docstring has to speak of: not the settings that have a help text of their own."""
    value = documented(name)
    known = list(inspect.signature(value).parameters)
    if name == "select_layers":
        return [each for each in known if each not in types_of(SelectSettings) | types_of(DataSettings)]
    if not (inspect.isclass(value) and issubclass(value, Checked)):
        return known
    helps = {each: meta_of(hint) for each, hint in types_of(value).items()}
    return [each for each in known if helps[each] is None or not helps[each].description]


@pytest.fixture(scope="module")
def place(tmp_path_factory, bert_directory):
    """A directory with a model, rows, a recipe and a finished run."""
    here = tmp_path_factory.mktemp("examples")
    (here / "model").symlink_to(bert_directory)
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences()))
    (here / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        layersift.train("model", "rows.jsonl", "last:2", "run", TrainSettings(epochs=1))
    return here


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in NAMES])
def test_the_example_does_what_it_shows(name, place, monkeypatch):
    monkeypatch.chdir(place)
    examples = doctest.DocTestFinder(recurse=False).find(documented(name), name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    assert sum(runner.run(example, out=said.append).attempted for example in examples) >= 2
    assert "".join(said) == ""


@pytest.mark.parametrize("name", sorted(set(NAMES) - ERRORS))
def test_the_docstring_speaks_of_each_argument_and_of_what_comes_back(name):
    described = re.findall(r"^    (\w+): ", section(name, "Args") or "", re.MULTILINE)
    assert set(arguments(name)) <= set(described)
    if inspect.isfunction(documented(name)):
        assert section(name, "Returns")
        assert section(name, "Raises")


def test_an_example_that_is_wrong_is_seen():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda text: None).failed == 1
