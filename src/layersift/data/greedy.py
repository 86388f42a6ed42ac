"""What ends an answer, and a generation config of our own: greedy, with nothing inherited from the base's."""

from __future__ import annotations

import copy
import logging
from contextlib import suppress
from typing import Any

import transformers

from layersift.data.chat.conversation import Conversation
from layersift.data.chat.encode_chat import special_ids
from layersift.data.chat.template import Template, render
from layersift.data.chat.turns import PROBE
from layersift.data.encode import Encoder, language_token
from layersift.errors import DataError
from layersift.models.load import LoadedModel
from layersift.progress import warn_once

log = logging.getLogger(__name__)

# Which of the base's settings are kept: what tokens are called, and what is of no consequence for a greedy answer.
KEPT = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"})
HARMLESS = frozenset(
    {*KEPT, "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    | {"max_length", "max_new_tokens", "use_cache", "cache_implementation", "transformers_version"}
    | {"_from_model_config", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"}
)


def closing_texts(encoder: Encoder) -> list[str]:
    """What the chat template writes behind an answer, in the last turn and in those before it, each stripped.

    Nothing where there is no template, or it does not write a plain conversation.
    """
    images = encoder.processor is not None
    own = encoder.processor.chat_template if images else None
    given = encoder.chat_template or (own if isinstance(own, str) else None)
    template = None if encoder.seq2seq else Template.of(given, encoder.tokenizer)
    if template is None:
        return []
    turns = [{**m, "content": [{"type": "text", "text": m["content"]}]} if images else m for m in PROBE]
    texts = []
    for messages in (tuple(turns), (*turns, *turns)):
        trained = tuple(message["role"] == "assistant" for message in messages)
        with suppress(DataError):
            rendered = render(Conversation(messages, trained), template, "a conversation to try the template with")
            for start, end in rendered.responses:
                texts.append(rendered.text[start:end].rpartition(PROBE[1]["content"])[2].strip())
    return [text for text in dict.fromkeys(texts) if text]


def find_stops(model: Any, encoder: Encoder) -> tuple[list[int], list[str]]:
    """Tokens that end an answer, and texts of several tokens that do.

    The tokenizer's end-of-text token, those of the model, and what the chat template closes a trained turn with.
    """
    tokenizer = encoder.tokenizer
    named = getattr(model.generation_config, "eos_token_id", None)
    tokens = {*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id} - {None}
    texts = []
    special = special_ids(tokenizer)
    for text in closing_texts(encoder):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids[-1] in special or len(ids) == 1:
            tokens.add(ids[-1])
        else:
            texts.append(text)
    return sorted(tokens), texts


def find_endings(model: Any, encoder: Encoder) -> tuple[str, ...]:
    """What ends an answer, as text; nothing where none are written."""
    if encoder.kind not in ("instruction", "text"):
        return ()
    tokens, texts = find_stops(model, encoder)
    return (*map(str, encoder.tokenizer.convert_ids_to_tokens(tokens)), *texts)


def greedy_config(model: Any, encoder: Encoder, pad_id: int) -> Any:
    """A generation config of our own for a model: greedy, ended by :func:`stops_of`; all else is transformers' default.

    What the base's own would have changed is told once.
    """
    own = model.generation_config
    reset = {
        name: value
        for name, value in own.to_diff_dict().items()
        if name not in HARMLESS and value not in (None, False, [], {}) and not name.startswith("_")
    }
    if reset:
        named = ", ".join(f"{name} {value}" for name, value in reset.items())
        warn_once(log, f"answers are greedy: what the base's generation_config.json sets is not used ({named})")
    tokens, _ = find_stops(model, encoder)
    kept = {name: getattr(own, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
    if encoder.languages is not None:
        token = language_token(encoder.tokenizer, encoder.languages[1])
        begins = encoder.tokenizer(text_target="a")["input_ids"][0] == token  # mBART's first checkpoints start from it
        kept["forced_bos_token_id" if begins else "decoder_start_token_id"] = token
    return transformers.GenerationConfig(
        do_sample=False,
        eos_token_id=tokens or None,
        pad_token_id=pad_id,
        **{n: v for n, v in kept.items() if v is not None},
    )


def reader_as_trained(loaded: LoadedModel, encoder: Encoder) -> Any:
    """Tokenizer or processor of a model, writing conversations as training read them; the model's own is left alone."""
    reader = loaded.processor or loaded.tokenizer
    if encoder.chat_template is None:
        return reader
    template = Template.of(encoder.chat_template, loaded.tokenizer)
    reader = copy.copy(reader)
    reader.chat_template = encoder.chat_template if template is None else template.text
    return reader
