"""Conversations about images, written for models that read both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from layersift.errors import DataError
from layersift.load.chat import Rendered, Template, render
from layersift.load.conversation import Conversation, Message


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
