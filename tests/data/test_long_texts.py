"""Long texts are tokenised as far as the model reads, and give the same tokens as if they were tokenised whole."""

import time

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from layersift.data.chat.encode_chat import SPARE, cut_long_text
from layersift.data.encode import Encoder
from layersift.data.table import table_of
from words import tokenizer


def text_of(words, seed=0):
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("abcdefgh "), rng.integers(1, 12))) for _ in range(words))


def trained(kind):
    """A tokenizer of the kind, trained on the spot."""
    model, trainer, split = {
        "bpe": (models.BPE(unk_token="?"), trainers.BpeTrainer(vocab_size=300, special_tokens=["?"]), "bytes"),
        "unigram": (
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=300, unk_token="?", special_tokens=["?"]),
            "meta",
        ),
        "wordpiece": (
            models.WordPiece(unk_token="?"),
            trainers.WordPieceTrainer(vocab_size=300, special_tokens=["?"]),
            "space",
        ),
    }[kind]
    made = Tokenizer(model)
    made.pre_tokenizer = {
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "meta": pre_tokenizers.Metaspace(),
        "space": pre_tokenizers.Whitespace(),
    }[split]
    made.train_from_iterator([text_of(2000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?", pad_token="?")


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("limit", [1, 7, 64])
def test_the_first_tokens_are_those_of_the_whole_text(kind, limit):
    tok, text = trained(kind), text_of(4000, seed=1)
    part = cut_long_text(text, tok, limit)
    assert len(part) < len(text)
    whole = tok(text)["input_ids"]
    assert tok(part)["input_ids"][:limit] == whole[:limit]


def test_short_texts_and_those_without_white_space_are_left_as_they_are():
    tok = trained("bpe")
    assert cut_long_text("a b c", tok, 4) == "a b c"
    assert cut_long_text("a" * 10_000, tok, 4) == "a" * 10_000


def test_white_space_that_becomes_no_token_does_not_hide_what_follows():
    text = " " * 50_000 + "w1 w2 w3 " * 20_000
    tok = tokenizer()
    part = cut_long_text(text, tok, 16)
    assert len(part) < len(text)
    assert tok(part)["input_ids"][: 16 + SPARE] == tok(text)["input_ids"][: 16 + SPARE]


@pytest.mark.parametrize("kind", ["text", "instruction", "classification"])
def test_a_row_of_ten_megabytes_costs_no_more_than_what_is_read_of_it(kind):
    long = "w1 w2 w3 w4 " * 850_000
    rows = [
        {"text": long, "label": i % 2} if kind != "instruction" else {"prompt": "w1", "response": long}
        for i in range(2)
    ]
    table = table_of(rows, "rows", kind=kind)
    encoder = Encoder(tokenizer("decoder"), kind, ("0", "1"), max_length=64)
    started = time.process_time()
    example, cut = encoder.encode(table, 0)
    assert time.process_time() - started < 0.5
    assert cut
    assert len(example) == 64
