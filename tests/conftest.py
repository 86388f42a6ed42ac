"""Shared set-up: no network, quiet libraries; tiny models saved to disk, as a user has them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tiny import tiny
from words import tokenizer


def save(directory, name, tok):
    model = tiny(name)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(directory)
    tok.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"), "bert", tokenizer())


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), "llama", tokenizer("decoder", chat=True))


def pytest_addoption(parser):
    parser.addoption("--data", help="directory with gsm8k/, sst2/ and trec/, for the tests that need real data")
