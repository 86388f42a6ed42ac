"""Where in a rendered conversation each trained turn stands: found by what the template writes, not by searching text.

A turn's content is changed and the conversation is written again: what differs is the content's place, whatever the
template does to it. A turn begins where the template, given the messages before it and asked for a generation prompt,
stops agreeing with the text; it ends with the last token of its own that the template writes behind the content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from layersift.data.chat.conversation import REASONING, Message

# Stand-ins for a text: one of them differs from it in its first and in its last letter, however it is trimmed.
STAND_INS = ("Qx7Zq", "Kj4Wv", "Yp9Mr")
PROBE = ({"role": "user", "content": "Qx7Zq"}, {"role": "assistant", "content": "Kj4Wv"})
Span = tuple[int, int]


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True)
class Turns:
    """A conversation, how to write (a part of) it, and how it is written."""

    write: Callable[..., str]
    messages: Sequence[Message]
    text: str
    closing: frozenset[str]  # tokens that may end a turn

    def attempt(self, messages: Sequence[Message], **settings: Any) -> str | None:
        """What the template writes, or None where it does not take these messages: each has rules of its own."""
        try:
            return self.write(messages, **settings)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
            return None


def spans_of_turns(turns: Turns, places: Sequence[int]) -> list[Span | None]:
    """The character span of each of these messages: all that the model is to write; None where nothing is written."""
    header = _header(turns)  # what asks for an answer, and what the template then begins every answer with
    spans: list[Span | None] = []
    floor = 0
    for place in places:
        content = _changed(turns, turns.messages, place, turns.text)
        if content is None:
            spans.append(None)
            continue
        start = _start(turns, place, header, floor, content[0])
        end = content[1] + _closing(turns, place, content[1])
        spans.append((start, end))
        floor = end
    return spans


def unwritten(turns: Turns) -> tuple[int, ...]:
    """The places of the messages that say something which the template does not write: a text, a part, or a call.

    Reasoning may be left out, as it is of earlier answers.
    """
    places = []
    for place, message in enumerate(turns.messages):
        if any(turns.attempt(_with(turns.messages, place, o)) == turns.text for o in _variants(message, ())):
            places.append(place)
    return tuple(places)


def cut_short(turns: Turns) -> tuple[int, ...]:
    """The places of the messages whose text the template does not write to its end."""
    places = []
    for place, message in enumerate(turns.messages):
        content = message["content"]
        if isinstance(content, str) and content.strip() and content.strip() not in turns.text:
            longer = {**message, "content": content.rstrip() + _other(content)}
            if turns.attempt(_with(turns.messages, place, longer)) == turns.text:
                places.append(place)
    return tuple(places)


def said_within(turns: Turns, spans: Sequence[Span]) -> tuple[int, ...]:
    """The places of the messages that are not the assistant's and that a template writes within these spans."""
    places = []
    for place, message in enumerate(turns.messages):
        content = message["content"]
        if message["role"] == "assistant" or not isinstance(content, str) or not content.strip():
            continue
        if any(content.strip() in turns.text[a:b] for a, b in spans):  # an answer may say the same
            own = _changed(turns, turns.messages, place, turns.text)
            if own is not None and any(a < own[1] and own[0] < b for a, b in spans):
                places.append(place)
    return tuple(places)


def end_with_closing(text: str, end: int, closing: frozenset[str]) -> int:
    """The end of a turn together with the token that closes it, if one follows behind white space at most."""
    behind = len(text[end:]) - len(text[end:].lstrip())
    tokens = [token for token in closing if token and text.startswith(token, end + behind)]
    return end + behind + max(map(len, tokens)) if tokens else end


def _changed(turns: Turns, messages: Sequence[Message], place: int, text: str) -> Span | None:
    """The span of ``text`` that depends on what message ``place`` says."""
    spans = []
    for changed in _variants(messages[place]):
        other = turns.attempt(_with(messages, place, changed))
        if other is not None and other != text:
            first = _shared(text, other)
            last = _shared(text[first:][::-1], other[first:][::-1])
            spans.append((first, len(text) - last))
    return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else None


def _with(messages: Sequence[Message], place: int, message: Message) -> list[Message]:
    """The messages with another one in one place."""
    return [*messages[:place], message, *messages[place + 1 :]]


def _variants(message: Message, reasoning: Sequence[str] = REASONING) -> list[Message]:
    """The message with each of its parts changed in turn."""
    variants = []
    content = message["content"]
    if isinstance(content, str) and content.strip():
        variants.append({**message, "content": _other(content)})
    elif isinstance(content, list):
        texts = [i for i, part in enumerate(content) if part.get("type") == "text" and part["text"].strip()]
        changed = [[*content[:i], {**content[i], "text": _other(content[i]["text"])}, *content[i + 1 :]] for i in texts]
        variants += [{**message, "content": parts} for parts in changed]
    for name in reasoning:
        if isinstance(message.get(name), str) and message[name].strip():
            variants.append({**message, name: _other(message[name])})
    calls = message.get("tool_calls") or []
    for i, call in enumerate(calls):
        function = call["function"]
        others = {**function, "name": _other(function["name"])}, {**function, "arguments": _other_arguments(function)}
        variants += [{**message, "tool_calls": [*calls[:i], {**call, "function": o}, *calls[i + 1 :]]} for o in others]
    return variants


def _other(text: str) -> str:
    said = text.strip()
    return next(s for s in STAND_INS if s[0] != said[0] and s[-1] != said[-1])


def _other_arguments(function: dict[str, Any]) -> Any:
    return json.dumps({STAND_INS[0]: 1}) if isinstance(function.get("arguments"), str) else {STAND_INS[0]: 1}


def _header(turns: Turns) -> tuple[str, str]:
    """What the template writes in front of an answer: as it prompts for one, and then as part of it."""
    probe: Sequence[Message] = PROBE
    if any(isinstance(message["content"], list) for message in turns.messages):
        probe = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in PROBE]
    asked, prompted = turns.attempt(probe[:1]), turns.attempt(probe[:1], add_generation_prompt=True)
    answered = turns.attempt(probe)
    if asked is None or prompted is None or answered is None or not prompted.startswith(asked):
        return "", ""
    asks, content = prompted[len(asked) :], answered.rfind(STAND_INS[1])
    begins = answered.find(STAND_INS[0]) + len(STAND_INS[0])  # behind the question; what precedes it may count messages
    for length in range(len(asks), 0, -1):  # a prompt may open more than every answer begins with
        place = answered.rfind(asks[:length], begins, content)
        if place >= 0:
            return asks[:length], answered[place + length : content]
    return "", answered[len(asked) : content] if answered.startswith(asked) else ""


def _start(turns: Turns, place: int, header: tuple[str, str], floor: int, content: int) -> int:
    """Where the model begins to write a turn whose content begins at ``content``."""
    before = turns.messages[:place]
    without = turns.attempt(before) if before else None
    prompted = turns.attempt(before, add_generation_prompt=True) if before else None
    if without is not None and prompted is not None and turns.text.startswith(without) and len(without) >= floor:
        start = _shared(turns.text, prompted)
        if len(without) <= start <= content:
            return start
    # An earlier turn is written otherwise by now, or there is none: the header nearest in front of the content.
    asks, leads = header
    start = turns.text.rfind(asks, floor, content) if asks else -1
    if start >= 0:
        return start + len(asks)
    return content - len(leads) * (not asks and turns.text[floor:content].endswith(leads))


def _closing(turns: Turns, place: int, end: int) -> int:
    """How many characters behind the content belong to the turn: up to the last token that the template closes with."""
    alone, behind = turns.messages[: place + 1], turns.text[end:]
    tail, whole = behind, True
    if len(alone) < len(turns.messages):
        text = turns.attempt(alone)
        content = None if text is None else _changed(turns, alone, place, text)
        ended = "" if text is None or content is None else text[content[1] :]
        tail = behind[: _shared(behind, ended)]
        whole = tail == ended
    ends = [tail.rfind(token) + len(token) for token in turns.closing if token and token in tail]
    if ends:
        return max(ends)
    # Some templates close the last turn otherwise than those before it.
    return end_with_closing(turns.text, end, turns.closing) - end or len(tail.rstrip()) * whole
