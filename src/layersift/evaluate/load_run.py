"""Load a finished run: the base model with the trained adapters, and how its data were encoded."""

from __future__ import annotations

from pathlib import Path

from layersift.adapt import store
from layersift.errors import ModelError
from layersift.load.data import Columns, Table, read_table
from layersift.load.encode import Encoder
from layersift.load.models import LoadedModel, ModelSource, load_model
from layersift.train.run_record import RunRecord


def load_run(
    directory: Path, device: str | None = None, with_adapters: bool = True
) -> tuple[RunRecord, LoadedModel, Encoder]:
    """The run's record, its model with adapters (or as it was before them), and its encoder.

    Raises:
        LayersiftError: not a finished run.
        ModelError: the base model cannot be loaded, or is another one than was trained.
    """
    record = RunRecord.load(directory)
    source = ModelSource(**{**record.source, "device": device or record.source["device"]})
    classes = tuple(record.encoder["classes"])
    kind = record.encoder["kind"]
    base = load_model(source, kind, max(1, len(classes)), record.seed, "image" in record.columns)
    if base.revision != record.model_revision:
        raise ModelError(
            f"{source.name!r} is {base.revision} now, but the adapters in {directory} were trained on "
            f"{record.model_revision}"
        )
    settings = {**record.encoder, "classes": classes}
    encoder = Encoder(base.tokenizer, **settings, processor=base.processor, seq2seq=base.seq2seq)
    if not with_adapters:
        return record, base, encoder
    model = store.load(base.model, record.settings["method"], directory).eval()
    return record, LoadedModel(model, base.tokenizer, base.name, base.revision, base.processor), encoder


def run_table(record: RunRecord, data: str, split: str) -> Table:
    """Rows to evaluate a run on, read with the columns of its training.

    Raises:
        DataError: the data cannot be read, or lack one of those columns.
    """
    return read_table(data, Columns(**record.columns), record.encoder["kind"], split)
