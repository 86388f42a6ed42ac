"""Questions with lettered choices, and answers that come with more than their text."""

from __future__ import annotations

from typing import Any

from layersift.config.inputs import Columns
from layersift.errors import DataError
from layersift.load.rows import Row

ANSWER_BY_LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"


def multiple_choice(row: Row, columns: Columns, where: str) -> tuple[str, str]:
    """The question with lettered choices, and the right letter; worded as in the paper's scripts for ScienceQA.

    Choices are a list of texts, or ARC's ``{"text": [...], "label": [...]}``, whose labels the answer then names.

    Raises:
        DataError: there are no choices, or the answer is none of them.
    """
    choices, answer, asked = row[columns.choices or ""], row[columns.response or ""], row[columns.prompt or ""]
    labels: list[Any] = []
    if isinstance(choices, dict) and isinstance(choices.get("text"), list):
        labels, choices = list(choices.get("label") or ()), choices["text"]
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where}: column {columns.choices!r} is to hold a list of 2 to {len(LETTERS)} choices")
    if not isinstance(asked, str):
        raise DataError(f"{where}: column {columns.prompt!r} holds {repr(asked)[:60]}; a text is needed")
    texts = [str(choice) for choice in choices]
    known: dict[Any, int] = {text: i for i, text in enumerate(texts)}
    known |= {LETTERS[i]: i for i in range(len(texts))} | {i: i for i in range(len(texts))}
    if labels:
        known = {label: i for i, label in enumerate(labels)}
    if isinstance(answer, bool | list | dict) or answer not in known:
        raise DataError(
            f"{where}: the answer {answer!r} is neither an index below {len(texts)}, a letter, nor one of the choices"
        )
    context = f"Context: {row[columns.context]}\n" if columns.context and row.get(columns.context) else ""
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    return f"{context}{asked}\n{listed}\n{ANSWER_BY_LETTER}", LETTERS[known[answer]]


def settled_answer(answer: Any, column: str | None, where: str) -> Any:
    """SQuAD's ``{"text": [...], "answer_start": [...]}`` as its first text; anything else as it is.

    Raises:
        DataError: it holds no text.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), list):
        return answer
    if not answer["text"]:
        raise DataError(f"{where}: column {column!r} has no answer; leave out questions that have none")
    return answer["text"][0]
