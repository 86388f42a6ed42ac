"""Write prompts, responses and conversations as the text that the model was tuned on, and find the responses in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layersift.config.data import Columns
from layersift.errors import DataError, foreign
from layersift.load.rows import Row

# For models without a chat template: the wording of Alpaca, which the paper's scripts use too.
PLAIN_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ANSWER_BY_LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text."""

    text: str
    responses: tuple[tuple[int, int], ...]  # character spans on which the loss is taken
    add_special_tokens: bool  # a chat template writes its own
    add_eos: bool


def messages_of(row: Row, columns: Columns, where: str) -> list[dict[str, str]]:
    """The row as a list of {"role", "content"}: from prompt and response, chat messages, or ShareGPT's from/value.

    Raises:
        DataError: the row is no conversation that ends in an answer, or a part is empty.
    """
    if columns.messages:
        messages = [_message(m, where) for m in _as_list(row[columns.messages], f"{where}, {columns.messages!r}")]
    else:
        write = _multiple_choice if columns.choices else _instruction_and_response
        asked, answered = write(row, columns, where)
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if len(messages) < 2:
        raise DataError(f"{where}: expected a conversation in which the assistant answers")
    for message in messages:
        if not message["content"].strip():
            raise DataError(f"{where}: the text of {message['role']!r} is empty, it tokenises to nothing")
    return messages


def _instruction_and_response(row: Row, columns: Columns, where: str) -> tuple[str, str]:
    asked = str(row[columns.prompt or ""])
    if columns.context and row.get(columns.context):
        asked = f"{asked}\n\n{row[columns.context]}"
    return asked, str(row[columns.response or ""])


def _multiple_choice(row: Row, columns: Columns, where: str) -> tuple[str, str]:
    """The question with lettered choices, and the right letter; worded as in the paper's scripts for ScienceQA."""
    choices, answer = row[columns.choices or ""], row[columns.response or ""]
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where}: column {columns.choices!r} is to hold a list of 2 to {len(LETTERS)} choices")
    texts = [str(choice) for choice in choices]
    known: dict[Any, int] = {text: i for i, text in enumerate(texts)}
    known |= {LETTERS[i]: i for i in range(len(texts))} | {i: i for i in range(len(texts))}
    if answer not in known:
        raise DataError(
            f"{where}: the answer {answer!r} is neither an index below {len(texts)}, a letter, nor one of the choices"
        )
    context = f"Context: {row[columns.context]}\n" if columns.context and row.get(columns.context) else ""
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    return f"{context}{row[columns.prompt or '']}\n{listed}\n{ANSWER_BY_LETTER}", LETTERS[known[answer]]


def _as_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of messages, got {type(value).__name__}")
    return value


def _message(value: Any, where: str) -> dict[str, str]:
    if isinstance(value, dict):
        role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": ROLES.get(role, role), "content": content}
    raise DataError(f"{where}: expected messages with 'role' and 'content' (or 'from' and 'value')")


def prompt_text(messages: list[dict[str, str]], tokenizer: Any, chat_template: str | None) -> tuple[str, bool]:
    """What the model reads before it answers, and whether the tokenizer adds its special tokens."""
    if not (chat_template or tokenizer.chat_template):
        return PLAIN_PROMPT.format(instruction=instruction(messages)), True
    text = tokenizer.apply_chat_template(
        messages, chat_template=chat_template, tokenize=False, add_generation_prompt=True
    )
    return str(text), False


def instruction(messages: list[dict[str, str]]) -> str:
    """What is asked, without roles, for models that know none."""
    return "\n\n".join(m["content"] for m in messages)


def image_prompt(messages: list[dict[str, str]], processor: Any, chat_template: str | None) -> str:
    """As :func:`prompt_text`, with the image in front of the first message."""
    template = chat_template or processor.chat_template or processor.tokenizer.chat_template
    if not template:
        return f"USER: {processor.image_token}\n{instruction(messages)} ASSISTANT:"
    parts: list[dict[str, Any]] = [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages
    ]
    parts[0]["content"].insert(0, {"type": "image"})
    return str(processor.apply_chat_template(parts, chat_template=template, add_generation_prompt=True))


def render(row: Row, columns: Columns, tokenizer: Any, chat_template: str | None, where: str) -> Rendered:
    """The row as one text with the spans of its responses.

    Raises:
        DataError: the row is no conversation, or the template does not write the responses as they are.
    """
    messages = messages_of(row, columns, where)
    if chat_template or tokenizer.chat_template:
        return _from_template(messages, tokenizer, chat_template, where)
    if [m["role"] for m in messages[:-1]].count("assistant"):
        raise DataError(
            f"{where}: a conversation of several turns, but the model has no chat template (--chat-template)"
        )
    prompt = PLAIN_PROMPT.format(instruction=instruction(messages[:-1]))
    text = prompt + messages[-1]["content"]
    return Rendered(text, ((len(prompt), len(text)),), add_special_tokens=True, add_eos=True)


def _from_template(messages: list[dict[str, str]], tokenizer: Any, template: str | None, where: str) -> Rendered:
    # Templates report what they do not accept by an exception of the template engine.
    whose = "given by --chat-template" if template else f"of {tokenizer.name_or_path}"
    with foreign(DataError, f"{where}: the chat template {whose} does not write these messages"):
        text = str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt, _ = prompt_text(messages[:turn], tokenizer, template)
                spans.append(_response_span(text, prompt, message["content"], tokenizer, where))
    return Rendered(text, tuple(spans), add_special_tokens=False, add_eos=False)


def _response_span(text: str, prompt: str, response: str, tokenizer: Any, where: str) -> tuple[int, int]:
    """From behind the prompt to the end of the response and of the token that closes the turn."""
    wanted = response.strip()
    found = text.find(wanted, len(prompt)) if text.startswith(prompt) else -1
    if found < 0:
        raise DataError(
            f"{where}: the chat template of {tokenizer.name_or_path} does not write the prompt and then the response "
            "as they are"
        )
    end = found + len(wanted)
    special = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    closing = [t for t in special if text.startswith(t, end)]
    return len(prompt), end + max((len(t) for t in closing), default=0)
