"""Small trainings on rows that can be learned in a few steps."""

from contextlib import contextmanager

import numpy as np

from layersift.config.recipe import ModelSource
from layersift.config.train import TrainSettings
from layersift.data.encode import Encoder, encode_rows
from layersift.data.table import table_of
from layersift.models.load import load_model
from layersift.records.reading import describe
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput
from layersift.training.trainer import SaveOnInterrupt
from tiny import selection_of


@contextmanager
def interrupted_at(monkeypatch, step):
    """While active, a training that reaches the step ends behind it as if it had been interrupted there."""
    own = SaveOnInterrupt.on_step_end

    def ask(self, args, state, control, **kwargs):
        self.asked = state.global_step == step
        own(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(SaveOnInterrupt, "on_step_end", ask)
        yield


FAST = TrainSettings(epochs=2, learning_rate=1e-2, batch_size=4)


def sentences(n=24):
    """The class is whether w0 occurs: learnable in a few steps."""
    rng, rows = np.random.default_rng(1), []
    for i in range(n):
        words = [f"w{w}" for w in rng.integers(1, 40, rng.integers(2, 8))]
        rows.append({"text": " ".join([*words, "w0"] if i % 2 else words), "label": i % 2})
    return rows


def answers(n=16):
    return [{"prompt": f"w{i}", "response": f"w{i} # # # # {i % 9}"} for i in range(n)]


class Setting:
    def __init__(self, directory, kind, rows, classes=()):
        self.source = ModelSource(directory)
        self.loaded = load_model(self.source, kind, max(1, len(classes)))
        self.table = table_of(rows, "rows", kind=kind)
        self.encoder = Encoder(self.loaded.tokenizer, kind, classes, 64)
        self.examples = encode_rows(self.table, self.encoder, range(len(rows))).examples
        self.selection = selection_of(self.loaded.model, [1, 2])

    def train(self, output, settings=FAST, **more):
        selection = more.pop("selection", self.selection)
        place = RunOutput(output, *(more.pop(name, False) for name in ("resume", "merge", "sharded")))
        data = TrainingData(self.encoder, self.examples, describe(self.table))
        return train(self.loaded, data, selection, settings, place, **more)


def classify(bert_directory):
    return Setting(bert_directory, "classification", sentences(), ("0", "1"))
