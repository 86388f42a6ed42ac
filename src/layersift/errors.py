"""Errors that a user can act on. The command line prints them as one line and exits with code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

LONGEST = 390  # characters of a message
TAIL = 100  # of them from its end, where what would be right stands


class LayersiftError(ValueError):
    """Something the caller gave cannot be used; the message says what, where, and what would be right.

    It is one line of less than 400 characters, however long the values are that it quotes: what is too long is left out
    in the middle.

    Args:
        message: one line, what is wrong, where, and what would be right.

    Examples:
        >>> from layersift import LayersiftError, TrainSettings
        >>> try:
        ...     TrainSettings(rank=0)
        ... except LayersiftError as error:
        ...     print(error)
        rank 0 is out of range; at least 1 and at most 100,000 is possible
    """

    def __init__(self, message: str) -> None:
        said = " ".join(message.splitlines())
        super().__init__(said if len(said) <= LONGEST else f"{said[: LONGEST - TAIL - 5]} ... {said[-TAIL:]}")


class DataError(LayersiftError):
    """The data file or its columns cannot be read as asked.

    Examples:
        >>> from layersift import DataError, evaluate
        >>> try:
        ...     evaluate("run", "missing.jsonl")
        ... except DataError as error:
        ...     print(error)
        missing.jsonl: no such file
    """


class ModelError(LayersiftError):
    """The model cannot be loaded or has no blocks to choose from.

    Examples:
        >>> from layersift import ModelError, find_stack
        >>> from transformers import AutoModel
        >>> try:
        ...     find_stack(AutoModel.from_pretrained("model"), "vision")
        ... except ModelError as error:
        ...     print(error)
        the model has no vision tower; it has: encoder, encoder.layer
    """


class TrainingError(LayersiftError):
    """A training came to nothing: its loss, its gradients or its weights are not finite any more.

    Examples:
        >>> from layersift import TrainingError, TrainSettings, train
        >>> for rate in (1e-3, 1e-4):
        ...     settings = TrainSettings(learning_rate=rate, epochs=1)
        ...     try:
        ...         record = train("model", "rows.jsonl", "last:2", f"rate-{rate}", settings)
        ...         break
        ...     except TrainingError as error:
        ...         print(error)
        >>> record.settings.learning_rate
        0.001
    """


class SelectionError(LayersiftError):
    """A selection cannot be made, read, or applied to this model.

    Examples:
        >>> from layersift import Selection, SelectionError
        >>> try:
        ...     Selection.of_layers("model", "last:9")
        ... except SelectionError as error:
        ...     print(error)
        --layers last:9: there are 4 layers, so that last:4 is the most
    """


class AdapterError(LayersiftError):
    """PEFT would adapt, or has adapted, other modules than the selection names.

    Examples:
        >>> from layersift import AdapterError, Selection
        >>> from peft import LoraConfig
        >>> try:
        ...     Selection.of_layers("model", "last:2").peft_config("model", LoraConfig(target_modules=["q_proj"]))
        ... except AdapterError as error:
        ...     print(error)
        target modules ['q_proj'] match nothing in layer 2, 3 of bert.encoder.layer; name modules that every
        selected layer has, or use 'all-linear'
    """


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def listed(names: Iterable[str], longest: int = 240) -> str:
    """Names between commas, as many as a message has room for."""
    joined = ", ".join(names)
    return joined if len(joined) <= longest else f"{joined[:longest].rpartition(',')[0]}, ..."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> LayersiftError:
    """The error for a name that is not in a table: a close match first, then all of them."""
    names = sorted(known)
    close = closest(name, names)
    hint = f" Did you mean {close!r}?" if close else ""
    return LayersiftError(f"unknown {kind} {name!r}.{hint} Known: {listed(names)}.")


def unknown_key(where: str, key: str, known: Iterable[str]) -> LayersiftError:
    """The error for a key that nothing reads."""
    names = sorted(known)
    close = closest(key, names)
    hint = f"; did you mean {close!r}?" if close else f"; known: {listed(names)}"
    return LayersiftError(f"{where}: unknown key {key!r}{hint}")


def one_line(error: BaseException, longest: int = 160) -> str:
    """What a library says of an error, shortened; the kind of error where it says nothing, or only a key."""
    said = " ".join(str(error).split())
    if not said or isinstance(error, KeyError | AttributeError | TypeError | IndexError):
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    return said if len(said) <= longest else f"{said[: longest - 4]} ..."


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Through which frames an error came, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


# Letters that move the cursor, change colours or ring, by how they are shown; lines and tabs are laid out as they are.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """A text that comes from data, as it may be shown: a terminal would obey what controls it holds."""
    return text.translate(CONTROLS)


def _own_remedy(error: BaseException) -> str:
    """What a library itself says would help, in our flags; its text may be cut before it comes to that."""
    said = str(error)
    if "trust_remote_code" in said:
        return "--trust-remote-code runs the Python code that it brings"
    if match := re.search(r"pip install [\w.\[\]=<>-]*\w\]?", said):
        return match[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.partition('.')[0]}, if it is a package of that name"
    return ""


HUB_REMEDY = "give a path that is here, or an id of the Hub that you may read (`hf auth login`)"


@contextmanager
def wrap_library_errors(kind: type[LayersiftError], what: str, remedy: str) -> Iterator[None]:
    """The boundary to another library's reader: whatever it raises of a user's file or value becomes one line.

    Libraries document few of the errors that their readers raise, so that no list of them would be complete.

    Args:
        what: what could not be read, and where: the message begins with it.
        remedy: what would be right.

    Raises:
        LayersiftError: of ``kind``; our own errors pass as they are.
    """
    try:
        yield
    except LayersiftError:
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{what} ({one_line(error)}); {_own_remedy(error) or remedy}") from error
