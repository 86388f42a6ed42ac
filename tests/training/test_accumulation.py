"""A training with k accumulated batches is the training with batches k times as large, in every kind of task.

The oracle is a loop of our own: AdamW on the mean loss of all that an optimizer step sees, padded one sample at a time.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from layersift.config.recipe import ModelSource
from layersift.config.train import TrainSettings
from layersift.data.encode import Encoder, encode_rows
from layersift.data.table import table_of
from layersift.models.load import load_model
from layersift.records.reading import describe
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput
from layersift.training.trainer import LengthGroupedSampler
from tiny import selection_of, tiny
from words import tokenizer

SAMPLES, STEP, RATE = 22, 8, 0.01  # two whole optimizer steps and one of six samples


@pytest.fixture(scope="session")
def t5_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("t5")
    model = tiny("t5")
    model.config.architectures = [type(model).__name__]
    model.config.dropout_rate = 0.0  # its attention drops by a number of its own, not by a module
    model.save_pretrained(directory)
    tokenizer("encoder").save_pretrained(directory)
    return str(directory)


def rows_of(kind):
    rng, rows = np.random.default_rng(5), []
    for i in range(SAMPLES):
        text = " ".join(f"w{w}" for w in rng.integers(0, 40, int(rng.integers(2, 12))))
        if kind == "classification":
            rows.append({"text": text, "label": i % 3})
        elif kind == "regression":
            rows.append({"text": text, "score": -100.0 if i == 3 else i - 10.5})  # -100 is a score, not a mark
        elif kind == "text":
            rows.append({"text": text})
        else:
            answer = " ".join(f"w{w}" for w in rng.integers(0, 40, int(rng.integers(1, 9))))
            rows.append({"prompt": text, "response": answer})
    return rows


def sample_loss(model, example, kind, seq2seq):
    """Summed loss of one sample and the number of things it is taken on, from the definition."""
    given = {"input_ids": torch.tensor([example.input_ids])}
    if seq2seq:
        labels = torch.tensor(example.target)
        logits = model(**given, labels=labels[None]).logits[0]
        return cross_entropy(logits, labels, reduction="sum"), len(labels)
    logits = model(**given).logits[0]
    if kind == "classification":
        return cross_entropy(logits, torch.tensor(example.label)), 1
    if kind == "regression":
        return (logits[0] - example.label) ** 2, 1
    at = [i for i in range(1, len(example.input_ids)) if example.response[i]]
    wanted = torch.tensor([example.input_ids[i] for i in at])
    return cross_entropy(logits[[i - 1 for i in at]], wanted, reduction="sum"), len(at)


def plain_loop(model, examples, kind, seq2seq, order):
    """The mean loss of each optimizer step, with AdamW and a constant learning rate."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    model.train()
    losses = []
    for start in range(0, len(order), STEP):
        with model.device:  # wherever there is a GPU, the training was there
            parts = [sample_loss(model, examples[i], kind, seq2seq) for i in order[start : start + STEP]]
        loss = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)  # the Trainer's default
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


KINDS = ["classification", "regression", "instruction", "text", "seq2seq"]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("name", KINDS)
def test_accumulated_batches_train_as_one(name, accumulation, tmp_path, request):
    seq2seq = name == "seq2seq"
    kind = "instruction" if seq2seq else name
    directory = {"seq2seq": "t5_directory", "instruction": "llama_directory", "text": "llama_directory"}.get(name)
    source = ModelSource(request.getfixturevalue(directory or "bert_directory"))
    classes = ("0", "1", "2") if kind == "classification" else ()

    def begin():
        loaded = load_model(source, kind, max(1, len(classes)))
        for module in loaded.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return loaded

    loaded = begin()
    table = table_of(rows_of(kind), "rows", kind=kind)
    encoder = Encoder(loaded.tokenizer, kind, classes, 64, seq2seq=seq2seq)
    examples = encode_rows(table, encoder, range(SAMPLES)).examples
    selection = selection_of(loaded.model, [1, 2])
    settings = TrainSettings(
        method="full",
        epochs=1,
        learning_rate=RATE,
        scheduler="constant",
        warmup_ratio=0.0,
        weight_decay=0.0,
        batch_size=STEP // accumulation,
        gradient_accumulation=accumulation,
    )
    # The order depends on the batch size: the loop takes the training's.
    order = list(LengthGroupedSampler([len(e) for e in examples], settings.batch_size, 0))
    record = train(
        loaded, TrainingData(encoder, examples, describe(table)), selection, settings, RunOutput(tmp_path / "run")
    )
    again = begin().model
    blocks = selection.stack(again).blocks(again)
    inside = {id(p) for i in (1, 2) for p in blocks[i].parameters()}
    head = {id(p) for n, p in again.named_parameters() if n.startswith("classifier")}
    for parameter in again.parameters():
        parameter.requires_grad_(id(parameter) in inside | head)
    losses = plain_loop(again, examples, kind, seq2seq, order)
    assert record.steps == len(losses) == 3
    assert record.train_loss == pytest.approx(np.mean(losses), rel=2e-4)
    trained = dict(loaded.model.named_parameters())
    for key, expected in again.named_parameters():
        if expected.requires_grad:
            torch.testing.assert_close(trained[key], expected, atol=2e-4, rtol=1e-3)
