"""Which columns of a data source hold what: by the names that the ecosystem gives them, or as the user says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from layersift.config.inputs import Columns, TaskKind
from layersift.errors import DataError, closest, listed
from layersift.load.conversation import is_messages
from layersift.load.propose import flags_of, propose_columns
from layersift.load.rows import Row

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
CONTEXTS = {"instruction": ("input", "context"), "question": ("context", "passage")}
# What a conversation may have beside its turns.
BESIDE = {
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools",),
    "template_values": ("chat_template_kwargs",),
}
# Of data that others have tokenised, and of tasks that are not known here.
TOKENISED = ("input_ids", "labels", "attention_mask")
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
    wanted = {
        "classification": ["labelled"],
        "regression": ["labelled"],
        "instruction": ["prompted", "messages"],
        "text": ["text"],
    }.get(kind or "", list(readings))
    possible = {name: found for name in wanted if (found := readings[name]) is not None}
    if len(possible) > 1:
        possible.pop("text", None)  # text alone is what is left when nothing says more
    if len(possible) > 1:
        ways = "; ".join(f"{name}: {flags_of(columns)}" for name, columns in possible.items())
        raise DataError(f"{source} can be read in {len(possible)} ways: {ways}. Say which with these --*-column flags.")
    if not possible:
        raise _nothing_fits(rows, given, kind, source)
    found = next(iter(possible.values()))
    if ignored := [name for role, name in given.by_role().items() if getattr(found, role) != name]:
        raise DataError(
            f"{source}: column {ignored[0]!r} was given, but as {found.described()} there is no use for it; leave it "
            "away, or give other columns"
        )
    return found


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
