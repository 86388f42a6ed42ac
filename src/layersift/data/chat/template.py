"""Write conversations, also those about images, as the text that a model was tuned on; find the trained turns."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from layersift.data.chat.conversation import REASONING, Conversation, Message
from layersift.data.chat.turns import Span, Turns, cut_short, end_with_closing, said_within, spans_of_turns, unwritten
from layersift.errors import DataError, wrap_library_errors
from layersift.progress import warn_once

# For models without a chat template: the wording of Alpaca, which the paper's scripts use too.
PLAIN_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # how a template marks what the assistant generates
THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"  # where an answer's text holds its reasoning


log = logging.getLogger(__name__)
NOTHING = Conversation((), ())


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text."""

    text: str
    responses: tuple[tuple[int, int], ...]  # character spans on which the loss is taken
    add_special_tokens: bool  # a chat template writes its own
    add_eos: bool


@dataclass(frozen=True)
class Template:
    """A chat template with the tokenizer (or processor) whose special tokens it writes."""

    text: str
    tokenizer: Any
    whose: str  # for messages

    @classmethod
    def of(cls, given: str | None, tokenizer: Any, tools: bool = False) -> Template | None:
        """The template that was given, by its text or its name; else the tokenizer's own; None where there is none.

        Raises:
            DataError: the tokenizer has several, none of which is the default.
        """
        own = tokenizer.chat_template
        if isinstance(own, dict):
            name = given if given in own else "tool_use" if tools and "tool_use" in own else "default"
            if given is None and name not in own:
                raise DataError(
                    f"{tokenizer.name_or_path} has the chat templates {', '.join(sorted(own))}, none of which is the "
                    "default; name one with --chat-template"
                )
            own = own[name] if given is None or given in own else given
            return cls(own, tokenizer, f"{name!r} of {tokenizer.name_or_path}")
        if given:
            return cls(given, tokenizer, "given by --chat-template")
        return cls(own, tokenizer, f"of {tokenizer.name_or_path or 'its tokenizer'}") if own else None

    def write(self, conversation: Conversation, messages: Sequence[Message], **settings: Any) -> str:
        """The messages as text."""
        texts, _ = self._rendered(conversation, messages, settings)
        return str(texts[0])

    def write_marked(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the spans that the template itself marks as generated."""
        texts, spans = self._rendered(conversation, conversation.messages, {"return_assistant_tokens_mask": True})
        return str(texts[0]), list(spans[0])

    def _rendered(self, conversation: Conversation, messages: Sequence[Message], settings: dict[str, Any]) -> Any:
        return render_jinja_template(
            conversations=[list(messages)],
            tools=list(conversation.tools) or None,
            chat_template=self.text,
            **settings,
            **{**self.tokenizer.special_tokens_map, **conversation.template_values},
        )

    def marks_generation(self) -> bool:
        """Whether the template says itself what the assistant generates."""
        return GENERATION.search(self.text) is not None

    def closing_tokens(self) -> frozenset[str]:
        """Tokens that may end a turn: all that are written as they are, flagged special or not."""
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        added = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
        return frozenset(added | {str(token) for token in tokenizer.all_special_tokens})


def prompt_text(
    messages: Sequence[Message], tokenizer: Any, chat_template: str | None, beside: Conversation = NOTHING
) -> tuple[str, bool]:
    """What the model reads before it answers, and whether the tokenizer adds its special tokens.

    Args:
        beside: the conversation that the messages are of, for its tools and values.
    """
    template = Template.of(chat_template, tokenizer, bool(beside.tools))
    if template is None:
        return PLAIN_PROMPT.format(instruction=instruction(messages, "the prompt")), True
    return template.write(beside, messages, add_generation_prompt=True), False


def prompt_as_trained(conversation: Conversation, template: Template, where: str) -> str:
    """What training read before the last trained turn, and the model reads before it answers there.

    That is what the template writes when it is asked for an answer. Where it writes the messages otherwise as soon as
    an answer follows, as Mistral's that tells the last user's turn alone of the system prompt, it is what it writes
    then.

    Raises:
        DataError: the template does not write the conversation.
    """
    written = _as_written(conversation, template)
    last = conversation.last_trained()
    alone = replace(written, trained=tuple(i == last for i in range(len(written.messages))))
    whose = f"{where}: the chat template {template.whose} does not write these messages"
    with wrap_library_errors(DataError, whose, "another one can be given by --chat-template"):
        text, spans = _from_template(alone, template, where)
        read = text[: spans[-1][0]]
        asked = template.write(written, written.messages[:last], add_generation_prompt=True)
    if asked.startswith(read):
        return asked
    warn_once(log, f"the chat template {template.whose} writes prompts otherwise once an answer follows; as trained")
    return read


def instruction(messages: Sequence[Message], where: str) -> str:
    """What is asked, without roles, for models that know none.

    Raises:
        DataError: there is more than texts that ask.
    """
    for message in messages:
        if not isinstance(message["content"], str) or message["role"] not in ("user", "system"):
            raise DataError(
                f"{where}: a conversation of several turns, or with calls, but the model has no chat template "
                "(--chat-template)"
            )
    return "\n\n".join(m["content"] for m in messages if m["content"])


def render(conversation: Conversation, template: Template | None, where: str) -> Rendered:
    """The conversation as one text with the spans of its trained turns.

    Raises:
        DataError: the template does not write it whole, or there is no template and more than a prompt and a response.
    """
    if template is not None:
        whose = f"{where}: the chat template {template.whose} does not write these messages"
        with wrap_library_errors(DataError, whose, "another one can be given by --chat-template"):
            text, spans = _from_template(_as_written(conversation, template), template, where)
        _warn_lost_reasoning(conversation, template, text)
        return Rendered(text, spans, add_special_tokens=False, add_eos=False)
    *before, last = conversation.messages
    if not isinstance(last["content"], str) or "tool_calls" in last or conversation.tools:
        raise DataError(f"{where}: tools and calls need a chat template (--chat-template), which this model lacks")
    if any(last.get(name) for name in REASONING):
        raise DataError(f"{where}: reasoning needs a chat template (--chat-template), which this model lacks")
    prompt = PLAIN_PROMPT.format(instruction=instruction(before, where))
    text = prompt + last["content"]
    return Rendered(text, ((len(prompt), len(text)),), add_special_tokens=True, add_eos=True)


def _as_written(conversation: Conversation, template: Template) -> Conversation:
    """As the template takes it: arguments of calls as an object, or spelled as JSON where it joins texts; a
    developer's turn as the system's where it knows only that one."""
    if any("tool_calls" in message for message in conversation.messages):
        try:
            template.write(conversation, conversation.messages)
        except TypeError:
            conversation = replace(conversation, messages=tuple(map(_spelled, conversation.messages)))
    if any(message["role"] == "developer" for message in conversation.messages):
        try:
            places = _unwritten(conversation, template)
            unknown = any(conversation.messages[place]["role"] == "developer" for place in places)
        except TemplateError:  # the template raises of roles that it does not know
            unknown = True
        if unknown:
            known = f"the chat template {template.whose} knows no developer"
            warn_once(log, f"{known}: such turns are written as the system's")
            roles = {"developer": "system"}
            messages = ({**m, "role": roles.get(m["role"], m["role"])} for m in conversation.messages)
            conversation = replace(conversation, messages=tuple(messages))
    return conversation


def _unwritten(conversation: Conversation, template: Template, prompt: bool = False) -> tuple[int, ...]:
    """The places of messages that the template drops; looked for once for each shape of a conversation.

    Args:
        prompt: of the messages before the last trained turn, when an answer is asked for.
    """
    messages = conversation.messages[: conversation.last_trained()] if prompt else conversation.messages
    shape = (template.text, bool(conversation.tools), prompt, tuple(map(_shape, messages)))
    if shape not in _PLACES:
        asks: dict[str, Any] = {"add_generation_prompt": True} if prompt else {}

        def write(messages: Sequence[Message]) -> str:
            return template.write(conversation, messages, **asks)

        _PLACES[shape] = unwritten(Turns(write, messages, write(messages), frozenset()))
    return _PLACES[shape]


_PLACES: dict[Any, tuple[int, ...]] = {}  # by shape, what _unwritten came to


def _require_all_written(conversation: Conversation, template: Template, where: str) -> None:
    """Refuse a conversation of which the template drops a message.

    A system prompt that it writes only until an answer follows, as Mistral's does, is dropped in training and in use
    alike (:func:`prompt_as_trained`), which is told.

    Raises:
        DataError: it names the message and its role.
    """
    for place in _unwritten(conversation, template):
        role = conversation.messages[place]["role"]
        if role == "system" and place not in _unwritten(conversation, template, prompt=True):
            warn_once(
                log,
                f"the chat template {template.whose} writes the system prompt only until an answer follows: neither "
                "training nor predictions read it",
            )
            continue
        raise DataError(
            f"{where}: the chat template {template.whose} does not write message {place + 1} (role {role!r}), or "
            "not all of it; give one that does with --chat-template, or leave the rows out"
        )


def _shape(message: Message) -> tuple[Any, ...]:
    """What decides whether a template writes a message: its role, and which parts it has."""
    content = message["content"]
    kind = tuple(part["type"] for part in content) if isinstance(content, list) else bool(content and content.strip())
    calls = tuple(bool(call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    return message["role"], kind, calls, *sorted(name for name, value in message.items() if value)


def _spelled(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _from_template(
    conversation: Conversation, template: Template, where: str
) -> tuple[str, tuple[tuple[int, int], ...]]:
    require_written(conversation, template, where)
    _require_all_written(conversation, template, where)
    turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    trained = [i for i in turns if conversation.trained[i]]
    write = functools.partial(template.write, conversation)
    if template.marks_generation():
        text, spans = template.write_marked(conversation)
        _require_own_texts(conversation, Turns(write, conversation.messages, text, frozenset()), spans, template, where)
        if len(spans) == len(turns) or trained == turns:
            kept = [span for turn, span in zip(turns, spans, strict=False) if turn in trained]
            kept = spans if trained == turns else kept
            closing = template.closing_tokens()
            ends = [
                b if text[a:b].rstrip().endswith(tuple(closing)) else end_with_closing(text, b, closing)
                for a, b in kept
            ]
            return text, tuple((a, end) for (a, b), end in zip(kept, ends, strict=True) if b > a)
    text = write(conversation.messages)
    finding = Turns(write, conversation.messages, text, template.closing_tokens())
    _require_own_texts(conversation, finding, (), template, where)
    placed = spans_of_turns(finding, trained)
    for turn, span in zip(trained, placed, strict=True):
        if span is None:
            raise DataError(f"{where}: the chat template {template.whose} does not write message {turn + 1}")
    return text, tuple(span for span in placed if span is not None)


def _require_own_texts(
    conversation: Conversation, turns: Turns, marked: Sequence[Span], template: Template, where: str
) -> None:
    """Refuse a conversation of which the template cuts a message short, or marks another's as the assistant's.

    Raises:
        DataError: it names the message and its role.
    """
    for places, what in (
        (
            [place for place in cut_short(turns) if place not in _unwritten(conversation, template)],
            "does not write {} to its end",
        ),
        (said_within(turns, marked), "marks {} as generated"),
    ):
        for place in places:
            message = f"message {place + 1} (role {turns.messages[place]['role']!r})"
            raise DataError(
                f"{where}: the chat template {template.whose} {what.format(message)}; give another one with "
                "--chat-template, or leave the rows out"
            )


def _warn_lost_reasoning(conversation: Conversation, template: Template, text: str) -> None:
    """Tell of a template that has cut the reasoning out of the last answer, as R1's does: that is not trained then.

    Reasoning of earlier answers is left out by most templates that know any, as it is when the model is used.
    """
    last = conversation.messages[conversation.last_trained()]
    content = last["content"] if isinstance(last["content"], str) else ""
    thought = next((str(last[name]) for name in REASONING if last.get(name)), "")
    if THOUGHT_ENDS in content:
        thought = content.partition(THOUGHT_ENDS)[0].rpartition(THOUGHT_BEGINS)[2]
    if thought.strip() and thought.strip() not in text:
        warn_once(log, f"the chat template {template.whose} leaves the reasoning of answers out: it is not trained")


def require_written(conversation: Conversation, template: Template, where: str) -> None:
    """Refuse what the template would drop: it never names it.

    Raises:
        DataError: there are tools, calls or reasoning that the template does not know.
    """
    names = {name for message in conversation.messages for name in ("tool_calls", *REASONING) if message.get(name)}
    names |= {"tools"} if conversation.tools else set()
    # Templates know reasoning under one of its names; which one the data use is not for us to change.
    lost = sorted(name for name in names if name not in template.text)
    if lost:
        raise DataError(
            f"{where}: the chat template {template.whose} does not write {lost[0]!r}; give one that does with "
            "--chat-template, or leave such rows out"
        )


def render_with_images(conversation: Conversation, processor: Any, given: str | None, where: str) -> Rendered:
    """The conversation as one text with the processor's marks of images, all in front of the first trained turn.

    Raises:
        DataError: an image comes later, or the template does not write the conversation whole.
    """
    first = conversation.trained.index(True)
    if any(_images_in(message) for message in conversation.messages[first:]):
        raise DataError(f"{where}: an image behind the first answer; only those in front of it are supported")
    template = _template(given, processor)
    if template is not None:
        return render(replace(conversation, messages=tuple(map(_in_parts, conversation.messages))), template, where)
    *before, last = conversation.messages
    if not isinstance(last["content"], str) or any(m["role"] == "assistant" for m in before):
        raise DataError(
            f"{where}: a conversation of several turns, but the model has no chat template (--chat-template)"
        )
    prompt = image_prompt(before, conversation, processor, given)
    text = prompt + last["content"]
    return Rendered(text, ((len(prompt), len(text)),), add_special_tokens=True, add_eos=True)


def image_prompt(messages: Sequence[Message], conversation: Conversation, processor: Any, given: str | None) -> str:
    """What the model reads before it answers, with the processor's marks of images."""
    template = _template(given, processor)
    if template is not None:
        return template.write(conversation, list(map(_in_parts, messages)), add_generation_prompt=True)
    marks = f"{processor.image_token}\n" * len(conversation.images)
    texts = [part["text"] for m in messages for part in _in_parts(m)["content"] if part["type"] == "text"]
    asked = "\n\n".join(text for text in texts if text)
    return f"USER: {marks}{asked} ASSISTANT:"


def _template(given: str | None, processor: Any) -> Template | None:
    own = processor.chat_template
    return Template.of(given or (own if isinstance(own, str) else None), processor.tokenizer)


def _images_in(message: Message) -> bool:
    content = message["content"]
    return isinstance(content, list) and any(part["type"] == "image" for part in content)


def _in_parts(message: Message) -> Message:
    """Templates of such models take the content as parts."""
    content = message["content"]
    return (
        {**message, "content": [{"type": "text", "text": content or ""}]} if not isinstance(content, list) else message
    )
