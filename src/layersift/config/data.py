"""Which data, what their columns mean, and the kind of task that they are of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.errors import unknown_name

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

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASK_KINDS:
            raise unknown_name("task", str(self.task), TASK_KINDS)
        super().__post_init__()

    def columns(self) -> Columns:
        """The columns that were given."""
        roles = ("text", "text_pair", "label", "prompt", "response", "messages", "image", "choices")
        return Columns(**{role: getattr(self, f"{role}_column") for role in roles})
