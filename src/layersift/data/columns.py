"""Which columns of a data source hold what: by their names, or by what stands in them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from layersift.config.recipe import Columns, TaskKind
from layersift.data.chat.conversation import is_messages
from layersift.data.images import SUFFIXES, Row
from layersift.errors import DataError, closest, listed

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("query", "passage"),
)
TEXTS = ("text", "sentence", "content", "review", "document", "input", "question", "title")
LABELS = ("label", "labels", "target", "class", "category", "score", "similarity_score")
MESSAGES = ("messages", "conversations", "conversation", "chat")
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
RESPONSES = ("response", "completion", "output", "answer", "answers", "answerkey", "solution", "chosen")
# Names that ask for an answer only beside one another.
TASKS = (
    ("inputs", "targets"),
    ("source", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
)
IMAGES = ("image", "images", "img", "picture")
CHOICES = ("choices", "options")
# What an instruction is about, by the name of the column that asks.
CONTEXTS = {
    "instruction": ("input", "context"),
    "question": ("context", "passage"),
    "query": ("context", "passage"),
}
# What a conversation may have beside its turns.
BESIDE = {
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "template_values": ("chat_template_kwargs",),
}
# Of data that others have tokenised, and of tasks that are not known here.
OTHER_TASKS = {
    "ner_tags": "token classification",
    "pos_tags": "token classification",
    "start_positions": "extractive question answering",
}


def names_of(rows: Iterable[Row]) -> list[str]:
    """The columns of all rows, in the order in which they first come."""
    return list(dict.fromkeys(name for row in rows for name in row))


class UnknownColumnsError(DataError):
    """No column is called what the ecosystem calls such columns, and none was given."""


def find_columns(rows: Sequence[Row], given: Columns, source: str, kind: TaskKind | None = None) -> Columns:
    """The roles of the columns, from what was ``given`` and the ecosystem's usual names.

    Raises:
        DataError: a given column is missing or cannot be honoured, none fits, or two readings are possible; the
            message lists them.
    """
    names = names_of(rows)
    _check_given(given, names, source)
    readings = {
        "labelled": _guess_labelled(names, given),
        "prompted": _guess_prompted(names, given),
        "messages": _guess_messages(rows, names, given),
        "text": _guess_text(names, given),
    }
    fitting = {
        "classification": ["labelled"],
        "regression": ["labelled"],
        "instruction": ["prompted", "messages"],
        "text": ["text"],
    }.get(kind or "", list(readings))
    possible = {name: reading for name in fitting if (reading := readings[name]) is not None}
    if len(possible) > 1:
        possible.pop("text", None)  # text alone is what is left when nothing says more
    if len(possible) > 1:
        ways = "; ".join(f"{name}: {flags_of(reading)}" for name, reading in possible.items())
        raise DataError(f"{source} can be read in {len(possible)} ways: {ways}. Say which with these --*-column flags.")
    if not possible:
        raise _nothing_fits(rows, given, kind, source)
    columns = next(iter(possible.values()))
    if kind is None:
        _require_no_more(rows, columns, given, source)
    if ignored := [name for role, name in given.by_role().items() if getattr(columns, role) != name]:
        raise DataError(
            f"{source}: column {ignored[0]!r} was given, but as {columns.described()} there is no use for it; leave it "
            "away, or give other columns"
        )
    return columns


def _require_no_more(rows: Sequence[Row], guess: Columns, given: Columns, source: str) -> None:
    """Refuse to leave columns unread that say what the task is, where nobody has said it.

    That is beside a text alone a column of few values or one called like a label or an answer. It is a text where that
    which was taken for its name is a column of few values. It is a passage beside a prompt.

    Raises:
        DataError: there are some; the message names them.
    """
    seen = _by_form(rows)
    left = [name for name in names_of(rows) if name not in guess.used()]
    free = [name for name in left if not ABOUT_ROWS.fullmatch(name) or CLASS_INDEX.fullmatch(name)]
    _require_choices_and_split(rows, left, guess, given, source)
    few = {one.name for one in (*seen["class"], *seen["number"])}
    if guess.label is not None:
        taken = guess.text is not None and given.text is None and guess.text in few
        if others := [one.name for one in seen["text"] if one.name in free and taken]:
            raise DataError(
                f"{source}: {guess.described()} would be read, and the texts of {listed(map(repr, others), 120)} not; "
                f"name them with --text-column {shlex.quote(others[0])} and --text-pair-column, or confirm with "
                f"--text-column {shlex.quote(str(guess.text))}"
            )
        return
    if guess.prompt or guess.messages:
        about = not guess.context and given.prompt is None and guess.prompt
        if others := [one.name for one in seen["text"] if one.name in free and about and PASSAGE.search(one.name)]:
            raise DataError(
                f"{source}: {guess.described()} would be read, and {listed(map(repr, others), 120)} not, which looks "
                f"like what the prompts are about; write it into them, or confirm with --prompt-column {guess.prompt}"
            )
        return
    labels = {one.name for one in seen["class"]} | {one.name for one in seen["number"] if LABEL_LIKE.search(one.name)}
    named = {name for name in free if ANSWER_LIKE.search(name) or (LABEL_LIKE.search(name) and name not in few)}
    nested = {name for name in free if any(_is_nested(row.get(name)) for row in rows[:MOST_ROWS])}
    if others := [name for name in free if name in labels | named | nested]:
        if not others[0].strip():
            raise DataError(f"{source}: a column has no name, and {guess.described()} would be read alone; give it one")
        likely = next((name for name in others if name in labels), None)
        flag = f"--label-column {shlex.quote(likely)}" if likely else f"--response-column {shlex.quote(others[0])}"
        raise DataError(
            f"{source}: no column's name says what is to be learned; {guess.described()} would be read as plain text, "
            f"and {listed(map(repr, others), 120)} not at all. Say {flag}, with the column that it belongs to, or "
            "--task text"
        )


def _require_choices_and_split(
    rows: Sequence[Row], left: Sequence[str], guess: Columns, given: Columns, source: str
) -> None:
    """Refuse to leave unread what an answer is chosen from, and the column that tells test rows from training rows.

    Raises:
        DataError: there are some, and no column was given.
    """
    if given.used():
        return
    role, name = next(iter(guess.by_role().items()))
    confirm = f"or confirm with --{role.replace('_', '-')}-column {shlex.quote(name)}"
    choices = [name for name in left if OPTION.fullmatch(name)]
    lists = [name for name in left if OPTIONS.fullmatch(name) and any(_is_list(row.get(name)) for row in rows)]
    if (guess.label or guess.prompt) and (others := lists or (choices if len(choices) > 1 else [])):
        raise DataError(
            f"{source}: {guess.described()} would be read, and the choices in {listed(map(repr, others), 120)} not; "
            f"write them as a list into a column 'choices' beside 'question' and 'answer', or into the texts, {confirm}"
        )
    for column in left:
        values = {str(row[column]).lower() for row in rows if row.get(column) is not None}
        if PART.fullmatch(column) and len(values) > 1 and values <= PARTS:
            raise DataError(
                f"{source}: column {column!r} tells rows of {listed(sorted(values), 60)} apart, and all would be read "
                f"as one; write each part into a file of its own, {confirm}"
            )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | dict) and bool(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _nothing_fits(rows: Sequence[Row], given: Columns, kind: TaskKind | None, source: str) -> DataError:
    names = names_of(rows)
    lowered = [name.lower() for name in names]
    if "input_ids" in lowered:
        return DataError(
            f"{source}: rows of token ids; give the texts themselves, or from Python a DataLoader of these rows"
        )
    if other := next((task for name, task in OTHER_TASKS.items() if name in lowered), None):
        return DataError(f"{source}: {other} is not supported; classification, regression, instruction and text are")
    if "chosen" in lowered:
        return DataError(
            f"{source}: preferences without a prompt need chat messages in {names[lowered.index('chosen')]!r}; name "
            "the column of the prompt with --prompt-column, or train on one side as text with --text-column"
        )
    what = f"a {kind} task" if kind else "any task"
    said = f"{source}: no columns for {what} among {listed(names, 120)}"
    if ways := propose_columns(rows, given, kind):
        return UnknownColumnsError(f"{said}; try {' or '.join(f'{way.flags} ({way.kind})' for way in ways[:2])}")
    return UnknownColumnsError(
        f"{said}; name them with --text-column, --label-column, --prompt-column, --response-column, --messages-column "
        "or --image-column"
    )


def _check_given(given: Columns, names: list[str], source: str) -> None:
    for part, name in asdict(given).items():
        if name is not None and name not in names:
            flag, close = f"--{part.replace('_', '-')}-column", closest(name, names)
            hint = f" Did you mean {close!r}?" if close else ""
            raise DataError(f"{source} has no column {name!r} ({flag}).{hint} It has: {listed(map(repr, names), 160)}")
    twice = [name for name, count in Counter(given.used()).items() if count > 1]
    if twice:
        raise DataError(f"{source}: column {twice[0]!r} is given for two roles; each has a column of its own")


def _first(candidates: Iterable[str], names: Sequence[str]) -> str | None:
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[c] for c in candidates if c in lowered), None)


def _guess_labelled(names: list[str], given: Columns) -> Columns | None:
    label = given.label or _first(LABELS, names)
    if label is None or given.prompt or given.response or given.messages:
        return None
    free = [n for n in names if n != label]
    if given.text:
        return Columns(text=given.text, text_pair=given.text_pair, label=label)
    for first, second in PAIRS:
        a, b = _first((first,), free), _first((second,), free)
        if a and b:
            return Columns(text=a, text_pair=given.text_pair or b, label=label)
    text = _first(TEXTS, free)
    if text and not given.image:
        return Columns(text=text, text_pair=given.text_pair, label=label)
    image = given.image or _first(IMAGES, free)
    return Columns(image=image, label=label) if image else None


def _guess_prompted(names: list[str], given: Columns) -> Columns | None:
    if given.text or given.label or given.messages:
        return None
    image = given.image or _first(IMAGES, names)
    choices = given.choices or _first(CHOICES, names)
    response = given.response or _first(RESPONSES, [n for n in names if n != given.prompt])
    prompt = given.prompt or _first(PROMPTS, [n for n in names if n != response])
    for asks, answers in TASKS:
        a, b = _first((asks,), names), _first((answers,), names)
        if a and b and not (prompt and response):
            prompt, response = given.prompt or a, given.response or b
    if not (prompt and response):
        return None
    about = CONTEXTS.get(prompt.lower(), ())
    context = _first(("hint", "context", "support") if choices else about, [n for n in names if n != response])
    return _beside(names, Columns(prompt=prompt, response=response, context=context, image=image, choices=choices))


def _guess_messages(rows: Sequence[Row], names: list[str], given: Columns) -> Columns | None:
    if given.text or given.label or given.prompt or (given.response and given.messages):
        return None
    messages = given.messages or _first(MESSAGES, names)
    side = given.response or _first(("chosen",), names)
    if messages is None or given.response:  # preferences whose sides are whole conversations
        whole = side is not None and _first(PROMPTS, names) is None and any(is_messages(row.get(side)) for row in rows)
        messages = side if whole else None
        if messages and given.response:
            return _beside(names, replace(Columns(), messages=messages))
    image = given.image or _first(IMAGES, names)
    return _beside(names, Columns(messages=messages, image=image)) if messages else None


def _beside(names: list[str], columns: Columns) -> Columns:
    """With what a conversation may have beside its turns."""
    free = [name for name in names if name not in columns.used()]
    return replace(columns, **{role: _first(candidates, free) for role, candidates in BESIDE.items()})


def _guess_text(names: list[str], given: Columns) -> Columns | None:
    if given.label or given.prompt or given.response or given.messages:
        return None
    text = given.text or _first(TEXTS, names)
    return Columns(text=text, text_pair=given.text_pair) if text else None


MOST_ROWS = 1000  # that are looked at
MOST_LABELS = 100  # different values of a column of classes
LABEL_LIKE = re.compile(r"label|class|categ|topic|team|intent|sentiment|rating|score|target|type|tag", re.IGNORECASE)
PASSAGE = re.compile(r"passage|context|document|article|paragraph|background|story|dialog", re.IGNORECASE)
ANSWER_LIKE = re.compile(r"answer|respon|reply|repl|output|complet|solution|target|summar|correct", re.IGNORECASE)
# What rows are called and where they come from, which is no task.
ABOUT_ROWS = re.compile(
    r"(.*[-_ .])?(id|ids|idx|index|guid|uuid|urls?|link|source|src|origin|domain|lang|language|licen[sc]e|split|subset|"
    r"date|time|timestamp|year|month|author|user|name|file|filename|path|meta|metadata|dump|version|fold|length|tokens|"
    r"(token|word)_count|num_tokens|title)|__.*__|unnamed.*",
    re.IGNORECASE,
)

CLASS_INDEX = re.compile(
    r"(.*[-_ .])?(answer|correct|label|class|category|target)s?[-_ .]?(idx|index|id)", re.IGNORECASE
)
OPTION = re.compile(
    r"[a-j]|(option|choice|opt|op|ending|answer|sol|solution|alternative|candidate)[-_ ]?([a-j]|\d)", re.IGNORECASE
)
OPTIONS = re.compile(r"choices|options|endings|candidates|alternatives|distractors|mc[12]_targets", re.IGNORECASE)
PART = re.compile(r"split|subset|set|part|partition|fold|data_?set", re.IGNORECASE)
PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


@dataclass(frozen=True)
class Proposal:
    """One way to read the data."""

    kind: TaskKind
    columns: Columns
    by_columns: bool = True  # whether the columns alone say the kind; else the task has to be named

    @property
    def flags(self) -> str:
        """The columns as flags of the command line, with the task where it has to be named."""
        return flags_of(self.columns) + f" --task {self.kind}" * (not self.by_columns)


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
        ways.append(Proposal("text", Columns(text=text, text_pair=given.text_pair), by_columns=not ways))
    return ways


def _is_answer(one: _Seen) -> bool:
    return ANSWER_LIKE.search(one.name) is not None


def _by_form(rows: Sequence[Row]) -> dict[str, list[_Seen]]:
    """The columns by what stands in them, the likeliest first."""
    rows = list(islice(rows, MOST_ROWS))
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_seen(name, [row[name] for row in rows if row.get(name) not in (None, "")]) for name in names]
    by_form: dict[str, list[_Seen]] = {
        form: [one for one in columns if one.form == form]
        for form in ("text", "word", "class", "number", "messages", "image")
    }
    by_form["text"].sort(key=lambda one: -one.words)
    by_form["class"].sort(key=lambda one: (LABEL_LIKE.search(one.name) is None, one.different))
    by_form["number"].sort(key=lambda one: LABEL_LIKE.search(one.name) is None)
    by_form["text"] = by_form["text"] or by_form["word"]
    return by_form


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
