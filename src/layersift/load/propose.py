"""Which columns of a data source might hold what, by what stands in them, where their names say nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from layersift.config.inputs import Columns, TaskKind
from layersift.load.conversation import is_messages
from layersift.load.images import SUFFIXES
from layersift.load.rows import Row

MOST_ROWS = 1000  # that are looked at
MOST_LABELS = 100  # different values of a column of classes
LABEL_LIKE = re.compile(r"label|class|categ|topic|team|intent|sentiment|rating|score|target|type|tag", re.IGNORECASE)
ANSWER_LIKE = re.compile(r"answer|respon|reply|repl|output|complet|solution|target|summar", re.IGNORECASE)


@dataclass(frozen=True)
class Proposal:
    """One way to read the data."""

    kind: TaskKind
    columns: Columns

    @property
    def flags(self) -> str:
        """The columns as flags of the command line."""
        return flags_of(self.columns)


@dataclass(frozen=True)
class _Seen:
    """What stands in a column."""

    name: str
    form: str  # text, word, class, number, messages, image or other
    words: float = 0  # of a text, on average
    different: int = 0  # values

    @property
    def described(self) -> str:
        """For people."""
        about = {"text": f"{self.words:.0f} words on average", "class": f"{self.different} different values"}
        return f"{self.name} ({about[self.form]})" if self.form in about else self.name


def flags_of(columns: Columns) -> str:
    """Columns as flags of the command line, those that have one."""
    given = {role: name for role, name in columns.by_role().items() if role not in Columns.OPTIONAL}
    return " ".join(f"--{role.replace('_', '-')}-column {shlex.quote(name)}" for role, name in given.items())


def propose_columns(rows: Sequence[Row], given: Columns, kind: TaskKind | None = None) -> list[Proposal]:
    """Ways to read the rows, the likeliest first, that keep to the columns and the kind of task that are ``given``."""
    ways = [way for way in _ways(_by_form(rows), given) if kind in (None, way.kind)]
    asked = given.by_role()
    return [way for way in ways if all(asdict(way.columns)[role] == name for role, name in asked.items())]


def likely_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """By flag the columns that might be given with it, the likeliest first, each with what stands in it."""
    seen = _by_form(rows)
    roles = {
        "text": seen["text"],
        "label": [*seen["class"], *seen["number"]],
        "prompt": sorted(seen["text"], key=_is_answer),
        "response": sorted(seen["text"], key=lambda one: not _is_answer(one)),
        "messages": seen["messages"],
        "image": seen["image"],
    }
    few = {role: those for role, those in roles.items() if those and (role != "response" or len(those) > 1)}
    if len(seen["text"]) < 2:
        few.pop("prompt", None)
    return {f"--{role}-column": [one.described for one in those] for role, those in few.items()}


def _ways(seen: Mapping[str, list[_Seen]], given: Columns) -> list[Proposal]:
    """All ways, whatever is given beside texts and labels."""

    def first(those: Sequence[_Seen], but: str | None = None) -> str | None:
        return next((one.name for one in those if one.name not in (but, *given.used())), None)

    text = given.text or first(seen["text"])
    label = given.label or first([*seen["class"], *seen["number"]], but=text)
    kind: TaskKind = "regression" if label in [one.name for one in seen["number"]] else "classification"
    image, messages = given.image or first(seen["image"]), given.messages or first(seen["messages"])
    texts = sorted(seen["text"], key=_is_answer)
    prompt = given.prompt or first(texts)
    response = given.response or first(list(reversed(texts)), but=prompt)
    ways = []
    if messages:
        ways.append(Proposal("instruction", Columns(messages=messages, image=given.image)))
    if text and label:
        ways.append(Proposal(kind, Columns(text=text, text_pair=given.text_pair, label=label)))
    if image and label:
        ways.append(Proposal(kind, Columns(image=image, label=label)))
    if prompt and response:
        both = Columns(prompt=prompt, response=response, image=image, choices=given.choices)
        ways.append(Proposal("instruction", both))
    if text:
        ways.append(Proposal("text", Columns(text=text, text_pair=given.text_pair)))
    return ways


def _is_answer(one: _Seen) -> bool:
    return ANSWER_LIKE.search(one.name) is not None


def _by_form(rows: Sequence[Row]) -> dict[str, list[_Seen]]:
    """The columns by what stands in them, the likeliest first."""
    rows = list(islice(rows, MOST_ROWS))
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_seen(name, [row[name] for row in rows if row.get(name) not in (None, "")]) for name in names]
    found: dict[str, list[_Seen]] = {
        form: [one for one in columns if one.form == form]
        for form in ("text", "word", "class", "number", "messages", "image")
    }
    found["text"].sort(key=lambda one: -one.words)
    found["class"].sort(key=lambda one: (LABEL_LIKE.search(one.name) is None, one.different))
    found["number"].sort(key=lambda one: LABEL_LIKE.search(one.name) is None)
    found["text"] = found["text"] or found["word"]
    return found


def _seen(name: str, values: Sequence[Any]) -> _Seen:
    if not values:
        return _Seen(name, "other")
    if all(map(is_messages, values)):
        return _Seen(name, "messages")
    if all(map(_is_image, values)):
        return _Seen(name, "image")
    if not all(isinstance(value, str | int | float) for value in values):
        return _Seen(name, "other")
    different = len(set(values))
    words = sum(len(str(value).split()) for value in values) / len(values)
    if 2 <= different <= min(MOST_LABELS, max(2, len(values) // 2)) and words <= 4:
        return _Seen(name, "class", words, different)
    if all(_is_fraction(value) for value in values):
        return _Seen(name, "number", words, different)
    if not all(isinstance(value, str) for value in values) or all(map(_is_number, values)):
        return _Seen(name, "other")
    return _Seen(name, "text" if words >= 2 else "word", words, different)


def _is_image(value: Any) -> bool:
    if isinstance(value, dict):
        return {"bytes", "path"} >= {*value} and bool(value)
    return isinstance(value, str) and any(value.lower().endswith(suffix) for suffix in SUFFIXES)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_fraction(value: Any) -> bool:
    """Whether a value is, or spells, a number that is written with a decimal point: whole ones are often ids."""
    return isinstance(value, float) or (isinstance(value, str) and "." in value and _is_number(value))
