"""One model and one table of data: each thing about them is read once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from layersift.adapt.methods import adapter_config, with_ranks
from layersift.adapt.targets import layer_costs
from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.data.encode import Encoded, Encoder, encode_sample, read_template, set_languages
from layersift.data.table import Table, classes_of, read_data
from layersift.errors import DataError
from layersift.models.load import LoadedModel, empty_model, load_config, load_model, load_readers
from layersift.models.stacks import BlockStack, find_stack, is_encoder_decoder, longest_text
from layersift.records.reading import DataRecord, read_as_recorded
from layersift.select.sample import Sample, sample_table

if TYPE_CHECKING:
    from peft import PeftConfig


class Task:
    """A model and the data that it is to be tuned on; what commands, experiments and the Python interface start from.

    Properties are read in the order in which they are asked for, so that the first one asked for is refused first.
    """

    def __init__(self, model: ModelSource, data: DataSettings, tower: str | None = None) -> None:
        self.model, self.data, self.tower = model, data, tower

    @classmethod
    def open(
        cls,
        model: ModelSource,
        data: DataSettings,
        *,
        tower: str | None = None,
        table: Table | None = None,
        record: DataRecord | None = None,
    ) -> Task:
        """The task of a model and data that settings name; nothing is read yet but what is given.

        Args:
            tower: whose blocks are meant; see :func:`layersift.models.stacks.choose_stack`.
            table: rows that have been read already.
            record: of earlier work on the same data; their columns are read as it says.

        Raises:
            DataError: with ``record``, the data cannot be read.
        """
        task = cls(model, data, tower)
        known = table or (read_as_recorded(data, record) if record is not None else None)
        if known is not None:
            task.table = known
        return task

    @classmethod
    def around(cls, loaded: LoadedModel, data: DataSettings, table: Table, tower: str | None = None) -> Task:
        """The task of a model and rows that are in memory; ``data`` holds the text of a chat template, no file."""
        task = cls(loaded.source, data, tower)
        task.table, task.config = table, getattr(loaded.model, "config", None)
        task.readers = loaded.tokenizer or getattr(loaded.processor, "tokenizer", None), loaded.processor
        task.chat_template = data.chat_template
        return task

    @cached_property
    def table(self) -> Table:
        """The rows with their columns settled.

        Raises:
            DataError: see :func:`layersift.data.table.read_data`.
        """
        return read_data(self.data)

    @cached_property
    def config(self) -> Any:
        """The model's configuration.

        Raises:
            ModelError: it cannot be found or read.
        """
        return load_config(self.model)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes of a classification, in the order of the model's head; else none."""
        return classes_of(self.table, self.config)

    @cached_property
    def empty(self) -> Any:
        """The model without weights, as a task of this kind loads it.

        Raises:
            ModelError: its class cannot be built.
        """
        return empty_model(self.model, self.table.kind)

    @cached_property
    def stack(self) -> BlockStack:
        """The blocks to choose from.

        Raises:
            ModelError: the model has none, or none of the tower.
        """
        return find_stack(self.empty, self.tower)

    @cached_property
    def readers(self) -> tuple[Any, Any]:
        """Tokenizer and processor; None for what the task has no use for.

        Raises:
            ModelError: one is missing, or cannot be used.
        """
        return load_readers(self.model, self.table.kind, self.reads_images)

    @property
    def reads_images(self) -> bool:
        """Whether the rows hold images."""
        return bool(self.table.columns.image)

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads and a decoder writes."""
        return is_encoder_decoder(self.config)

    @cached_property
    def chat_template(self) -> str | None:
        """The text or the name of the chat template that was given.

        Raises:
            DataError: it cannot be read, or an encoder-decoder has no use for one.
        """
        if self.data.chat_template is None:
            return None
        if self.seq2seq:
            raise DataError("chat-template has no effect on an encoder-decoder, which has prompts alone; leave it away")
        return read_template(self.data.chat_template, self.readers[0])

    @cached_property
    def encoder(self) -> Encoder:
        """How the rows become examples for this model.

        Raises:
            LayersiftError: the tokenizer or the chat template cannot be read.
        """
        tokenizer, processor = self.readers
        translates = self.seq2seq and self.table.kind == "instruction"
        set_languages(tokenizer, self.data.source_language, self.data.target_language, translates)
        return Encoder(
            tokenizer,
            self.table.kind,
            self.classes,
            self.data.max_length,
            self.chat_template,
            processor,
            self.seq2seq,
            longest_text(self.config),
        )

    def load(self, seed: int, stays_on_cpu: bool = False) -> LoadedModel:
        """The model with its weights; a new head is drawn from ``seed``.

        Args:
            stays_on_cpu: the caller moves it to its device.

        Raises:
            ModelError: model or tokenizer cannot be found, read, or used for this kind of task.
        """
        count = max(1, len(self.classes))
        loaded = load_model(self.model, self.table.kind, count, seed, self.reads_images, stays_on_cpu)
        self.readers = loaded.tokenizer, loaded.processor
        return loaded

    def sample(self, settings: SelectSettings, table: Table | None = None) -> Sample:
        """What criteria are shown: a random sample of the rows, or of those of ``table``.

        Raises:
            DataError: too few rows, or a row cannot be encoded.
        """
        return sample_table(table or self.table, self.encoder, settings)

    def encode(self, at_most: int | None, seed: int, table: Table | None = None) -> Encoded:
        """Examples of all rows in order, or of ``at_most`` drawn by the seed; of ``table``'s in place of the task's.

        Raises:
            DataError: a row cannot be encoded.
        """
        return encode_sample(table or self.table, self.encoder, at_most, seed)

    def adapter(self, settings: TrainSettings, steps: int = 1) -> PeftConfig | None:
        """The PEFT config of a training of so many steps, ranks by module apart; None where the blocks are trained.

        Raises:
            LayersiftError: the method or an option cannot be used.
        """
        return adapter_config(settings, self.table.kind, steps, self.seq2seq)

    def with_ranks(
        self, adapter: PeftConfig | None, settings: TrainSettings, layers: Sequence[int] | None = None
    ) -> PeftConfig | None:
        """The adapter of some layers, or of all, with the ranks by module that the settings name.

        Raises:
            AdapterError: the method has no such ranks, or one names nothing that is adapted.
        """
        if adapter is None:
            return None
        of = range(self.stack.num_layers) if layers is None else layers
        return cast("PeftConfig", with_ranks(self.empty, self.stack, of, adapter, settings.ranks))

    def layer_costs(self, settings: SelectSettings, adapter: PeftConfig | None) -> list[int]:
        """Trained parameters of each layer where a budget is counted in them; else none.

        Raises:
            AdapterError: they cannot be counted without weights.
        """
        return [] if settings.budget_params is None else layer_costs(self.empty, self.stack, adapter)
