"""Answers, generated greedily, each for itself: no answer depends on its neighbours in a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from layersift.data.encode import Encoder
from layersift.data.examples import Example, collate
from layersift.data.greedy import find_stops, greedy_config
from layersift.data.readable import wrap_model_errors
from layersift.processes import from_all_processes, own_share
from layersift.represent.hooks import evaluation_mode

log = logging.getLogger(__name__)

GENERATION_BATCH = 16


@contextmanager
def generating_by(model: Any, config: Any) -> Iterator[None]:
    """While active, this is the model's generation config: `generate` fills what one leaves open from the model's."""
    owners = [m for m in model.modules() if "generation_config" in vars(m)]
    before = [m.generation_config for m in owners]
    for owner in owners:
        owner.generation_config = config
    try:
        yield
    finally:
        for owner, was in zip(owners, before, strict=True):
            owner.generation_config = was


def answers_of(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Example],
    pad_id: int,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[str | None]:
    """Greedily generated answers to prompts, in their order; None to one that leaves the model no place for an answer.

    An answer is as long as ``max_new_tokens`` or, where these are fewer, the places that its prompt leaves. What was
    cut or left unanswered so is told.

    Raises:
        ModelError: the model does not run on them.
    """
    answers: list[str | None] = [None] * len(prompts)
    longest = [min(max_new_tokens, _room(encoder, prompt)) for prompt in prompts]
    config, (_, texts) = greedy_config(model, encoder, pad_id), find_stops(model, encoder)
    order = sorted((i for i in range(len(prompts)) if longest[i] > 0), key=lambda i: (longest[i], -len(prompts[i])))
    _say_short(encoder, prompts, longest, max_new_tokens)
    batches: list[list[int]] = []
    for i in order:  # prompts of a batch have equal room, so that no answer depends on its neighbours
        if batches and len(batches[-1]) < GENERATION_BATCH and longest[batches[-1][0]] == longest[i]:
            batches[-1].append(i)
        else:
            batches.append([i])
    answerable = [prompts[i] for i in order]
    with (
        evaluation_mode(model),
        generating_by(model, config),
        wrap_model_errors(model, answerable, "a smaller --max-new-tokens"),
    ):
        for members in (batches[place] for place in own_share(len(batches))):
            for i, text in zip(
                members,
                _generate(model, encoder, [prompts[i] for i in members], pad_id, longest[members[0]], texts),
                strict=True,
            ):
                answers[i] = text
            if progress is not None:
                progress(len(members))
    if progress is not None and len(order) < len(prompts):
        progress(len(prompts) - len(order))
    return [
        next((answer for answer in of if answer is not None), None)
        for of in zip(*from_all_processes(answers), strict=True)
    ]


def _room(encoder: Encoder, prompt: Example) -> int:
    """How many tokens the model has places for behind a prompt; a decoder of its own begins anew."""
    if encoder.places is None:
        return 10**9
    return encoder.places - (1 if encoder.seq2seq else len(prompt))


def _say_short(encoder: Encoder, prompts: Sequence[Example], longest: Sequence[int], wanted: int) -> None:
    without = [i for i, room in enumerate(longest) if room <= 0]
    if without:
        named = ", ".join(f"{i + 1} ({len(prompts[i])} tokens)" for i in without[:5])
        log.warning(
            "%d of %d prompts have no answer: the model has places for %d tokens, and these fill them: %s%s",
            len(without),
            len(prompts),
            encoder.places,
            named,
            ", ..." if len(without) > 5 else "",
        )
    if short := [room for room in longest if 0 < room < wanted]:
        log.warning(
            "%d of %d answers have no more than %s new tokens and not %d: the model has places for %d tokens",
            len(short),
            len(prompts),
            str(min(short)) if min(short) == max(short) else f"{min(short)} to {max(short)}",
            wanted,
            encoder.places,
        )


def _generate(
    model: Any, encoder: Encoder, prompts: list[Example], pad_id: int, max_new_tokens: int, stops: Sequence[str]
) -> list[str]:
    """Greedy continuations. A decoder's prompts are padded on the left, since it goes on from each row's end."""
    inputs = {name: value.to(model.device) for name, value in collate(prompts, pad_id).items()}
    if not encoder.seq2seq:
        width = inputs["input_ids"].shape[1]
        by_token = [name for name, value in inputs.items() if value.shape == (len(prompts), width)]
        shifts = [width - len(prompt) for prompt in prompts]
        for name in by_token:
            rows = [row.roll(shift) for row, shift in zip(inputs[name], shifts, strict=True)]
            inputs[name] = torch.stack(rows)
    ended = {}
    if stops:
        begins = 0 if encoder.seq2seq else inputs["input_ids"].shape[1]
        ended = {"stopping_criteria": transformers.StoppingCriteriaList([_Ended(encoder.tokenizer, stops, begins)])}
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, **ended)
    new = output if encoder.seq2seq else output[:, inputs["input_ids"].shape[1] :]
    texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [text_before(text, stops) for text in texts]


class _Ended(transformers.StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Which rows have written a text that ends an answer; transformers' own fails on tokens that are whole words."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], begins: int) -> None:
        self.tokenizer, self.stops, self.begins = tokenizer, stops, begins
        self.tokens = 2 * max(len(tokenizer(stop, add_special_tokens=False)["input_ids"]) for stop in stops) + 2

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.begins :][:, -self.tokens :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)


def text_before(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first of these."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
