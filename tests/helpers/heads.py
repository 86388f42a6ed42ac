"""Predictions of a classification head alone and in a batch, where the configuration names another padding token."""

import tempfile

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as WITH_HEAD

from layersift.config.recipe import ModelSource
from layersift.data.encode import Encoder
from layersift.data.examples import labelled_batch
from layersift.data.table import table_of
from layersift.models.load import load_model
from tiny_types import NOT_TEXT, TOO_SLOW, tiny_model
from whole_way import LARGEST, answers, distance
from words import tokenizer

TYPES = sorted(set(WITH_HEAD) - NOT_TEXT - TOO_SLOW)
OTHER_PAD = 7  # a word of the tokenizer


def try_head(model_type, kind, say):
    """Say ``built``, then how far the predictions alone and in a batch lie ``apart``, and the ``spread`` of all."""
    torch.set_num_threads(1)
    model = tiny_model(model_type, kind)
    size = sum(p.numel() for p in model.parameters())
    assert size < LARGEST, f"{size:,} parameters at the smallest size that its config leaves"
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = OTHER_PAD
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        tokenizer().save_pretrained(place)
        loaded = load_model(ModelSource(place), kind, 2)
    rows = [
        {"text": " ".join(f"w{(3 * i + 7 * j) % 40}" for j in range(3 + 2 * i % 11)), "label": i % 2} for i in range(8)
    ]
    table = table_of(rows, "rows")
    encoder = Encoder(loaded.tokenizer, table.kind, ("0", "1"))
    examples = [encoder.encode(table, index)[0] for index in range(8)]
    together = answers(loaded, encoder, examples)
    say("built", "")
    inputs = labelled_batch(examples, loaded.pad_id, table.kind)
    del inputs["labels"]
    with torch.no_grad():
        padded = loaded.model(**inputs).logits.tolist()
    alone = [answers(loaded, encoder, [example])[0] for example in examples]
    say("apart", distance(together, alone))
    say("apart in any batch", distance(padded, alone))
    say("spread", float(torch.tensor(alone).std(0).max()))
