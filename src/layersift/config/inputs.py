"""What an experiment reads: the model, the rows to train on with their columns, and the rows to judge by."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.errors import LayersiftError, ModelError, unknown_name

QUANTIZATIONS = ("4bit", "8bit")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Of torch's kinds of devices, those that run a model; `meta` holds no numbers.
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu|mlu|musa)(:\d{1,3})?")


@dataclass(frozen=True)
class ModelSource(Checked):
    """Where a model comes from and how its code and numbers are to be treated."""

    name: Annotated[str, Meta(description="A local directory, a Hub id or a .gguf file.")]  # as the user gave it
    revision: Annotated[str | None, Meta(description="Revision of a Hub model.")] = None
    # None: float32 on a CPU, the checkpoint's own on a GPU
    dtype: Annotated[str | None, Meta(description="float32, bfloat16 or float16.")] = None
    device: Annotated[str | None, Meta(description="cpu, cuda, cuda:1, ...; else the first GPU, or the CPU.")] = None
    trust_remote_code: Annotated[bool, Meta(description="Run Python code that a model brings.")] = False
    quantization: Annotated[
        str | None, Meta(description="4bit (NF4) or 8bit: quantise the base on loading, by bitsandbytes.")
    ] = None
    stream: Annotated[
        bool, Meta(description="Read a model larger than memory: one block at a time, from its files.")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name.strip():
            raise ModelError("model '': a local directory, a Hub id or a .gguf file is needed")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise unknown_name("quantization", self.quantization, QUANTIZATIONS)
        if self.quantization is not None and self.stream:
            raise ModelError("stream reads the blocks from their files as they are; quantization needs them loaded")
        if self.device is not None and not DEVICE.fullmatch(self.device):
            raise ModelError(f"device {self.device!r}: expected cpu, cuda, cuda:1, mps or another kind of accelerator")


TaskKind = Literal["classification", "regression", "instruction", "text"]
TASK_KINDS: tuple[TaskKind, ...] = ("classification", "regression", "instruction", "text")


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where the task has no such part. Flags of the command line set the same fields."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    context: str | None = None  # what an instruction is about; may be empty in a row (Alpaca's `input`)
    image: str | None = None
    choices: str | None = None  # list of answers among which the response names one, by index, letter or text
    # What a conversation may have beside; found by their names, and may be empty in a row.
    system: str | None = None
    history: str | None = None  # earlier rounds
    tools: str | None = None  # what the assistant may call
    template_values: str | None = None  # further values for the chat template, such as enable_thinking

    OPTIONAL: ClassVar[tuple[str, ...]] = ("context", "system", "history", "tools", "template_values")

    def used(self) -> list[str]:
        """Names of the columns in use."""
        return [name for name in asdict(self).values() if name]

    def needed(self) -> list[str]:
        """Names of the columns that are to be filled in every row."""
        return [name for role, name in self.by_role().items() if role not in self.OPTIONAL]

    def by_role(self) -> dict[str, str]:
        """The columns in use by what they hold."""
        return {part: name for part, name in asdict(self).items() if name}

    def described(self) -> str:
        """The columns in use, for the screen."""
        return ", ".join(f"{part.replace('_', ' ')} = {name!r}" for part, name in self.by_role().items())


@dataclass(frozen=True)
class DataSettings(Checked):
    """Where the samples are and what their columns mean; columns that are None are found by their names."""

    data: Annotated[
        str,
        Meta(
            description="A .jsonl, .json, .csv or .parquet file, a directory saved by `datasets` or of images, or a "
            "Hub id."
        ),
    ]
    task: Annotated[
        TaskKind | None, Meta(description="classification, regression, instruction or text; else found out.")
    ] = None
    text_column: Annotated[str | None, Meta(description="Column of the text.")] = None
    text_pair_column: Annotated[str | None, Meta(description="Column of the second text of a pair.")] = None
    label_column: Annotated[str | None, Meta(description="Column of the class, or of the number to predict.")] = None
    prompt_column: Annotated[str | None, Meta(description="Column of the prompt.")] = None
    response_column: Annotated[
        str | None, Meta(description="Column of the response. [of preferences: the chosen side]")
    ] = None
    messages_column: Annotated[str | None, Meta(description="Column of chat messages.")] = None
    image_column: Annotated[str | None, Meta(description="Column of the image or images: paths, or encoded bytes.")] = (
        None
    )
    choices_column: Annotated[str | None, Meta(description="Column of a list of answers; the response names one.")] = (
        None
    )
    split: Annotated[str, Meta(description="Split of a directory or Hub dataset.")] = "train"
    max_length: Annotated[int, Meta(ge=1, le=10**8, description="Longest sequence in tokens; the rest is cut off.")] = (
        512
    )
    chat_template: Annotated[
        str | None, Meta(description="A Jinja file, instead of the model's own chat template.")
    ] = None
    source_language: Annotated[
        str | None, Meta(description="Language of the prompts, as a translation model's tokenizer names it (en_XX).")
    ] = None
    target_language: Annotated[str | None, Meta(description="Language of the responses, likewise (de_DE).")] = None

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASK_KINDS:
            raise unknown_name("task", str(self.task), TASK_KINDS)
        super().__post_init__()

    def columns(self) -> Columns:
        """The columns that were given."""
        roles = ("text", "text_pair", "label", "prompt", "response", "messages", "image", "choices")
        return Columns(**{role: getattr(self, f"{role}_column") for role in roles})


@dataclass(frozen=True)
class EvaluateSettings(Checked):
    """What the variants of a run, or the choices of a comparison, are judged on."""

    # One source, or several by name, each with its split behind an @; None: a fifth of the training data is held back
    # by the seed.
    data: Annotated[
        str | dict[str, str] | None, Meta(description="Test data; else a fifth of the training rows is held back.")
    ] = None
    split: Annotated[str, Meta(description="Split of a directory or Hub dataset.")] = "test"
    max_samples: (
        Annotated[int, Meta(ge=1, le=10**9, description="Samples of each source, drawn at random. [all]")] | None
    ) = None
    metrics: (
        Annotated[list[str], Meta(min_length=1, description="Metrics to report, the first being the score. [all]")]
        | None
    ) = None
    exact_match: Annotated[
        int,
        Meta(ge=0, le=10**9, description="For this many prompts, generate answers and compare their final numbers."),
    ] = 0
    max_new_tokens: Annotated[int, Meta(ge=1, le=10**6, description="Longest generated answer in tokens.")] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = self.data.values() if isinstance(self.data, dict) else [self.data]
        if self.data == {} or "" in sources:
            raise LayersiftError("evaluate.data is empty; name test data, or leave it away to hold rows back")

    def sources(self) -> dict[str, tuple[str, str]]:
        """Source and split by name; a single one has no name."""
        if self.data is None:
            return {}
        given = {"": self.data} if isinstance(self.data, str) else self.data
        parts = {name: source.rpartition("@") for name, source in given.items()}
        return {name: (before or after, after if at else self.split) for name, (before, at, after) in parts.items()}
