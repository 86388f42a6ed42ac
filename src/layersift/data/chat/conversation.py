"""A row as a conversation: what each turn says in the form that chat templates take, and which turns are trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layersift.config.recipe import Columns
from layersift.data.images import Row
from layersift.errors import DataError, listed

Message = dict[str, Any]

# ShareGPT's names, those of its kin, and OpenAI's older name of a tool's result.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
}
SPELLED = ("system", "user", "assistant", "tool", "developer", *ROLES)  # known in any case of letters
# What a message may say beside its text that nothing here reads.
UNREAD = (
    "text",
    "parts",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "file",
    "files",
    "attachments",
    "refusal",
)
# Words for whether a turn is trained: OpenAI's, LLaMA-Factory's, Axolotl's, verl's and slime's, ms-swift's.
TRAINED_FLAGS = (
    "weight",
    "loss",
    "train",
    "trained",
    "trainable",
    "training",
    "train_on_turn",
    "loss_mask",
    "loss_scale",
)
MARK_LIKE = re.compile(r"loss|train|mask|weight|learn", re.IGNORECASE)  # names of further ones, which are refused
# Numbers beside a turn that only count it.
COUNTERS = ("id", "index", "idx", "turn", "turn_id", "turn_index", "position", "timestamp", "created")
CALL = "function_call"  # LLaMA-Factory's role of a turn that is a tool call, written as JSON
# What a turn may consist of beside its text.
REASONING = ("reasoning_content", "reasoning", "thinking")
IMAGE_PARTS = {"image": "image", "image_url": "image_url"}
PLACEHOLDER = "<image>"  # LLaVA's, in the text


@dataclass(frozen=True)
class Conversation:
    """The turns of one row."""

    messages: tuple[Message, ...]  # role, content (text, None or parts), and whatever else the row says of the turn
    trained: tuple[bool, ...]  # of each message, whether the loss is taken on it
    tools: tuple[Any, ...] = ()  # what the assistant may call, for the template
    images: tuple[Any, ...] = ()  # in the order of their parts in the messages
    template_values: Mapping[str, Any] = field(default_factory=dict)  # such as enable_thinking

    def last_trained(self) -> int:
        """Place of the last message that is trained."""
        return max(i for i, wanted in enumerate(self.trained) if wanted)


def conversation_of(row: Row, columns: Columns, where: str) -> Conversation:
    """The row as a conversation: from chat messages, ShareGPT's from/value, or prompt and response with what they have.

    Of messages every turn of the assistant is trained but those that say otherwise (``TRAINED_FLAGS``, such as
    ``weight`` 0 or ``train`` false). Of a prompt and a response, the response is, and the answers of a `history` are.

    Raises:
        DataError: the row is no conversation in which the assistant answers, a turn is empty, or something in it can
            be neither handed on nor honoured.
    """
    if columns.messages:
        messages, trained = _turns(row[columns.messages], f"{where}, column {columns.messages!r}")
    elif columns.choices:
        asked, answered = multiple_choice(row, columns, where)
        messages, trained = [_says("user", asked), _says("assistant", answered)], [False, True]
    else:
        messages, trained = _prompt_and_response(row, columns, where)
    if columns.system and row.get(columns.system):
        if messages[0]["role"] == "system":
            raise DataError(f"{where}: a system message and column {columns.system!r}; a conversation has one of them")
        messages.insert(0, _says("system", _text(row[columns.system], columns.system, where)))
        trained.insert(0, False)
    _require_answers(messages, trained, where)
    messages, images = _with_images(messages, row.get(columns.image) if columns.image else None, where)
    return Conversation(
        tuple(messages),
        tuple(trained),
        tuple(_tools(row.get(columns.tools), columns.tools, where)) if columns.tools else (),
        tuple(images),
        _template_values(row.get(columns.template_values), where) if columns.template_values else {},
    )


def is_messages(value: Any) -> bool:
    """Whether a cell holds chat messages."""
    value = messages_in(value)
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and {"role", "from"} & {*value[0]} != set()
    )


def _says(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _text(value: Any, column: str | None, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {repr(value)[:60]}; a text or chat messages are needed")
    return value


def messages_in(value: Any) -> Any:
    """The messages that a cell holds as JSON text, as CSV and parquet files often do; any other value as it is."""
    return _from_json(value, "[")


def _from_json(value: Any, begins: str) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(begins):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _turns(value: Any, where: str) -> tuple[list[Message], list[bool]]:
    """Messages in the form of chat templates, and which are trained."""
    value = messages_in(value)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of messages, got {repr(value)[:60]}")
    read = [_message(_from_json(each, "{"), where) for each in value]
    return [message for message, _ in read], [trained for _, trained in read]


def _prompt_and_response(row: Row, columns: Columns, where: str) -> tuple[list[Message], list[bool]]:
    asked, answered = row[columns.prompt or ""], answer_text(row[columns.response or ""], columns.response, where)
    messages, trained = _history(row.get(columns.history), where) if columns.history else ([], [])
    context = row.get(columns.context) if columns.context else None
    if is_messages(asked):
        if context:
            raise DataError(f"{where}: column {columns.context!r} beside chat messages; say it in the messages")
        given, _ = _turns(asked, f"{where}, column {columns.prompt!r}")
        messages, trained = messages + given, trained + [False] * len(given)
    else:
        text = _text(asked, columns.prompt, where)
        text = f"{text}\n\n{_text(context, columns.context, where)}" if context else text
        messages, trained = [*messages, _says("user", text)], [*trained, False]
    if not is_messages(answered):
        return [*messages, _says("assistant", _text(answered, columns.response, where))], [*trained, True]
    said, counts = _turns(answered, f"{where}, column {columns.response!r}")
    if said[0]["role"] == "assistant":
        return messages + said, trained + counts
    if said[: len(messages)] != messages:  # preference data often repeat the prompt
        raise DataError(
            f"{where}: column {columns.response!r} holds a conversation that does not begin with column "
            f"{columns.prompt!r}"
        )
    return said, [*trained, *counts[len(messages) :]]


def _history(value: Any, where: str) -> tuple[list[Message], list[bool]]:
    """Earlier rounds, LLaMA-Factory's [[asked, answered], ...], which are trained like the last."""
    if not value:
        return [], []
    if not isinstance(value, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(said, str) for said in pair)
        for pair in value
    ):
        raise DataError(
            f"{where}: column 'history' holds {repr(value)[:60]}; pairs of a question and an answer are needed"
        )
    turns = [turn for asked, answered in value for turn in (_says("user", asked), _says("assistant", answered))]
    return turns, [False, True] * len(value)


def _message(value: Any, where: str) -> tuple[Message, bool]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected messages with 'role' and 'content' (or 'from' and 'value')")
    role, said = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str):
        raise DataError(f"{where}: expected messages with 'role' and 'content' (or 'from' and 'value')")
    if value.get("content") is not None and value.get("value") not in (None, said):
        raise DataError(f"{where}: a message has a 'content' and another 'value'; leave one of them away")
    if unread := next((name for name in UNREAD if value.get(name)), None):
        raise DataError(
            f"{where}: a message has {unread!r} beside its content, which is not read; say texts and images in the "
            "content, or leave this key away"
        )
    own = ("role", "from", "content", "value", *TRAINED_FLAGS)
    role = role.strip().lower() if role.strip().lower() in SPELLED else role
    # Arrow gives every message the keys of all of them, with nothing in those that it lacks.
    others = {name: given for name, given in value.items() if name not in own and given is not None}
    if role == CALL:
        role, said, others = "assistant", None, {**others, "tool_calls": [_written_call(said, where)]}
    if CALL in others:  # OpenAI's older form, of one call
        others["tool_calls"] = [*(others.get("tool_calls") or ()), others.pop(CALL)]
    if "tool_calls" in others:
        others["tool_calls"] = [_call(call, where) for call in others["tool_calls"] or ()]
        if not others["tool_calls"]:
            del others["tool_calls"]
    role = ROLES.get(role, role)
    return {"role": role, "content": _content(said, role, where), **others}, _is_trained(value, role, others, where)


def _says_something(content: Any, others: Message) -> bool:
    text = content.strip() if isinstance(content, str) else content
    return bool(text) or "tool_calls" in others or any(others.get(name) for name in REASONING)


def _is_trained(message: Message, role: str, others: Message, where: str) -> bool:
    """Whether the loss is taken on a turn: an assistant's is, unless a flag beside it says otherwise.

    Raises:
        DataError: a flag is neither 0 nor 1, flags contradict one another, another turn than the assistant's is to be
            trained, or a key that is not known is false or 0.
    """
    flags = {name: message[name] for name in TRAINED_FLAGS if message.get(name) is not None}
    for name, value in flags.items():
        if value not in (0, 1):
            raise DataError(f"{where}: a message has {name} {repr(value)[:20]}; 0 and 1 are known")
    if len({bool(value) for value in flags.values()}) > 1:
        raise DataError(f"{where}: a message has {listed(f'{n} {v}' for n, v in flags.items())}; one says to train it")
    trained = all(flags.values())
    if role != "assistant":
        if flags and trained and "weight" not in flags:
            raise DataError(
                f"{where}: {next(iter(flags))!r} asks to train a turn of {role!r}; only the assistant's are trained"
            )
        return False
    for name, value in others.items():
        if MARK_LIKE.search(name) or ((value is False or value == 0) and name not in COUNTERS):
            raise DataError(
                f"{where}: {name!r} is {value!r} beside a turn of the assistant; to leave a turn out of the loss use "
                "'weight' 0, otherwise leave this key away"
            )
    return trained


def _content(said: Any, role: str, where: str) -> Any:
    """Text; None beside calls; or parts where one of them is an image."""
    if said is None:
        return None
    if isinstance(said, str):
        return said
    if not isinstance(said, list):
        raise DataError(f"{where}: the content of {role!r} is {repr(said)[:60]}; a text or a list of parts is needed")
    parts = [_part(part, where) for part in said]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in IMAGE_PARTS:
        given = next((part[name] for name in ("image", "image_url", "path", "url") if part.get(name) is not None), None)
        given = given.get("url") if isinstance(given, dict) and "url" in given else given
        return {"type": "image"} if given is None else {"type": "image", "image": given}
    raise DataError(f"{where}: a message has the part {repr(part)[:60]}; texts and images are known")


def _written_call(said: Any, where: str) -> Message:
    """The call that a turn spells as JSON."""
    try:
        call = json.loads(said)
    except (TypeError, ValueError):
        call = None
    if not isinstance(call, dict) or "name" not in call:
        raise DataError(
            f"{where}: a turn of {CALL!r} holds {repr(said)[:60]}; JSON with 'name' and 'arguments' is needed"
        )
    return {"type": "function", "function": call}


def _call(call: Any, where: str) -> Message:
    """A tool call with its arguments as an object: OpenAI spells them as JSON, templates spell them themselves."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{where}: a tool call is {repr(call)[:60]}; a 'function' with 'name' and 'arguments' is needed"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise DataError(f"{where}: the arguments of a tool call are no JSON: {arguments[:60]!r}") from None
    arguments = without_nulls(arguments)
    named = {name: given for name, given in function.items() if name != "arguments" and given is not None}
    spelled = {**named, "arguments": {} if arguments is None else arguments}
    return (
        {**{k: v for k, v in call.items() if v is not None}, "function": spelled}
        if "function" in call
        else {
            "type": "function",
            "function": spelled,
        }
    )


def without_nulls(value: Any) -> Any:
    """An object without the keys that hold nothing, at every depth: Arrow gives each object the keys of all."""
    if isinstance(value, dict):
        return {name: without_nulls(given) for name, given in value.items() if given is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list | tuple) else value


def _tools(value: Any, column: str, where: str) -> list[Any]:
    """What may be called, in today's form: OpenAI's older ``functions`` are the bare objects."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{where}: column {column!r} is no JSON: {value[:60]!r}") from None
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where}: column {column!r} holds {repr(value)[:60]}; a list of objects is needed")
    tools = [without_nulls(tool) for tool in value]
    older = column.lower() == "functions"
    return [{"type": "function", "function": tool} if older and "function" not in tool else tool for tool in tools]


def _template_values(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise DataError(f"{where}: column 'chat_template_kwargs' holds {repr(value)[:60]}; an object is needed")
    return {name: given for name, given in (value or {}).items() if given is not None}


def _require_answers(messages: Sequence[Message], trained: Sequence[bool], where: str) -> None:
    if not any(message["role"] == "assistant" for message in messages) or len(messages) < 2:
        raise DataError(f"{where}: expected a conversation in which the assistant answers")
    if not any(trained):
        raise DataError(f"{where}: no turn of the assistant counts, each is said not to be trained")
    for message in messages:
        if message["role"] != "system" and not _says_something(message["content"], message):
            raise DataError(f"{where}: the text of {message['role']!r} is empty, it tokenises to nothing")


def _with_images(messages: list[Message], given: Any, where: str) -> tuple[list[Message], list[Any]]:
    """The messages with a part for each image, and the images: those in the parts, and those of the image column."""
    beside = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    if beside:
        messages = [_with_placeholders(message) for message in messages]
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"] if p["type"] == "image"]
    if beside and not parts:  # a question about an image: in front of what is asked
        first = next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)
        text = [{"type": "text", "text": messages[first]["content"] or ""}]
        parts = [{"type": "image"} for _ in beside]
        messages = [*messages[:first], {**messages[first], "content": [*parts, *text]}, *messages[first + 1 :]]
    open_parts = sum("image" not in part for part in parts)
    if open_parts != len(beside):
        raise DataError(
            f"{where}: {open_parts} places for images in the messages, but {len(beside)} images beside them"
        )
    rest = iter(beside)
    return messages, [part["image"] if "image" in part else next(rest) for part in parts]


def _with_placeholders(message: Message) -> Message:
    """LLaVA marks an image's place within the text."""
    content = message["content"]
    if not isinstance(content, str) or PLACEHOLDER not in content:
        return message
    first, *others = content.split(PLACEHOLDER)
    parts: list[Message] = [{"type": "text", "text": first}]
    for text in others:
        parts += [{"type": "image"}, {"type": "text", "text": text.removeprefix("\n")}]
    return {**message, "content": [part for part in parts if part["type"] == "image" or part["text"]]}


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
    if None in choices or not all(map(str.strip, texts)):
        raise DataError(f"{where}: column {columns.choices!r} holds {listed(map(repr, choices), 80)}; one is empty")
    if not labels and texts.count(answer) > 1:
        raise DataError(
            f"{where}: the answer {answer!r} is {texts.count(answer)} of the choices; give its index or letter"
        )
    known: dict[Any, int] = {text: i for i, text in enumerate(texts)}
    known |= {LETTERS[i]: i for i in range(len(texts))} | {i: i for i in range(len(texts))}
    if labels:
        known = {label: i for i, label in enumerate(labels)}
    if isinstance(answer, bool | list | dict) or answer not in known:
        raise DataError(
            f"{where}: the answer {answer!r} is neither an index below {len(texts)}, a letter, nor one of the choices"
        )
    context = f"Context: {row[columns.context]}\n" if columns.context and row.get(columns.context) else ""
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    return f"{context}{asked}\n{lines}\n{ANSWER_BY_LETTER}", LETTERS[known[answer]]


def answer_text(answer: Any, column: str | None, where: str) -> Any:
    """SQuAD's ``{"text": [...], "answer_start": [...]}`` as its first text; anything else as it is.

    Raises:
        DataError: it holds no text.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), list):
        return answer
    if not answer["text"]:
        raise DataError(f"{where}: column {column!r} has no answer; leave out questions that have none")
    return answer["text"][0]
