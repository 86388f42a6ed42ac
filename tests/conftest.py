"""Shared set-up: no network, quiet libraries; tiny models saved to disk, as a user has them.

What takes long to import is imported where it is used: with several processes the one that hands out tests runs none.
"""

import functools
import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import subprocess
import sys

import jinja2
import pytest
from hypothesis import settings

from cli import serve

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")

# PEFT writes a model card with every checkpoint, and its template is compiled anew for each.
jinja2.Template.__new__ = functools.cache(jinja2.Template.__new__)

serve()


def save(directory, name, kind="encoder", chat=False):
    from tiny import tiny
    from words import tokenizer

    model = tiny(name)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(directory)
    tokenizer(kind, chat=chat).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), "llama", "decoder", chat=True)


@pytest.fixture
def call(capfd, monkeypatch):
    """The command line within this process, for the many cases in which a new one would only cost time."""

    from layersift.__main__ import main

    def in_process(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["layersift", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code or 0, out, err)

    return in_process


@pytest.fixture
def no_trial(monkeypatch):
    """For tests that count what passes through a model: nobody tries whether its samples heed their neighbours."""
    monkeypatch.setattr("layersift.data.examples.find_neighbour_effects", lambda *given: "none")


@pytest.fixture
def no_kinds(monkeypatch):
    """For comparisons that are not about kinds of modules alone, whose rows take long to plan and to train."""
    monkeypatch.setattr("layersift.experiment.costs.Costs.kinds", lambda costs, method: {})


def pytest_addoption(parser):
    parser.addoption("--data", help="directory with gsm8k/, sst2/ and trec/, for the tests that need real data")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What takes longest is begun first; the order of the others stays as it was drawn."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What has been imported is no garbage: some collections a training would walk through all of it each time."""
    gc.collect()
    gc.freeze()
