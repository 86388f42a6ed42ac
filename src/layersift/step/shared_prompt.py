"""A prompt that all rows of a training begin with, which the frozen prefix computes once instead of once a row.

In a causal model a token's states depend on the tokens before it alone. So below the first trained block the states of
a shared beginning, and its keys and values, are the same in every row and in every step. The frozen blocks run over the
rest of each row, behind these keys and values. The trained blocks read whole rows, as they always do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from layersift.represent.causal import cache_argument, new_cache, put_before_batches, same_states
from layersift.represent.hooks import Done, Form, entering_states, leaving_states, wrap_forward
from layersift.step.activation_cache import ActivationCache

log = logging.getLogger(__name__)

NOT_READ = ("labels", "num_items_in_batch", "use_cache", "return_dict")  # by blocks


@dataclass
class SharedPrompt:
    """The tokens that all rows begin with, and whether they are still computed once."""

    ids: tuple[int, ...]
    checked: bool = False  # whether rows of a batch have been computed both ways, with the same states
    stopped: bool = False  # they differed
    batches: int = 0  # whose rows went through the frozen blocks without these tokens

    @property
    def tokens(self) -> int:
        """How many tokens of each row are not computed."""
        return 0 if self.stopped else len(self.ids)


def share_prompt(
    prompt: SharedPrompt, model: Any, frozen: Sequence[nn.Module], cache: ActivationCache | None
) -> list[Callable[[], None]]:
    """Let frozen blocks run over the rows of ``model`` without the prompt that these begin with; what undoes it.

    A batch of which a row begins otherwise, or that is called with more than tokens and a mask, is passed as ever.

    Args:
        cache: what keeps and serves the output of these blocks; it is told to do so without the prompt.
    """
    sharing = _Sharing(prompt, model.base_model, len(frozen), cache)
    undo = [wrap_forward(block, functools.partial(sharing.pass_block, place)) for place, block in enumerate(frozen)]
    return [*undo, model.register_forward_pre_hook(sharing.begin, with_kwargs=True).remove]


class _Sharing:
    """The frozen blocks of one cut."""

    def __init__(self, prompt: SharedPrompt, backbone: Any, blocks: int, cache: ActivationCache | None) -> None:
        self._prompt, self._backbone, self._blocks, self._cache = prompt, backbone, blocks, cache
        self._argument = cache_argument(backbone) or ""
        self._alone = False  # whether the frozen blocks run by themselves, within a pass of the whole model
        self._inputs: Mapping[str, Any] | None = None  # of the pass that runs, where its rows begin with the prompt
        self._shared: tuple[torch.Tensor, Cache] | None = None  # what leaves the last block (1, P, d); keys and values
        self._form = Form()  # of the last block's output
        self._ran: list[torch.Tensor] = []  # what has left the last block since they ran by themselves
        self._leaving = torch.empty(0)  # (B, T, d), of the pass that runs

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass of the model begins."""
        self._inputs = kwargs if not args and self._begin_alike(kwargs) else None
        if self._inputs is None and self._cache is not None and not self._prompt.stopped:
            self._cache.stand_aside()  # it holds the rows' rests

    def _begin_alike(self, inputs: Mapping[str, Any]) -> bool:
        ids, mask, tokens = inputs.get("input_ids"), inputs.get("attention_mask"), self._prompt.tokens
        others = [value for name, value in inputs.items() if name not in ("input_ids", "attention_mask", *NOT_READ)]
        if not tokens or any(value is not None for value in others) or not torch.is_tensor(ids) or ids.ndim != 2:
            return False
        if not torch.is_tensor(mask) or mask.shape != ids.shape or ids.shape[1] <= tokens:
            return False
        wanted = ids.new_tensor(self._prompt.ids)
        return bool(((ids[:, :tokens] == wanted) & (mask[:, :tokens] != 0)).all())

    def pass_block(self, place: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One of the frozen blocks in place of its own ``forward``."""
        last = place == self._blocks - 1
        if self._alone:
            output = forward(*args, **kwargs)
            if last:
                form = Form.of(output)
                self._form = self._form if form is None else form
                self._ran.append(leaving_states(output))
                raise Done
            return output
        if self._inputs is not None and place == 0:
            self._compute(self._inputs)
        if self._inputs is None:
            return forward(*args, **kwargs)
        if not last:
            return self._form.put(entering_states(args, kwargs))
        leaving, self._leaving = self._leaving, torch.empty(0)
        return self._form.put(leaving)

    @torch.no_grad()
    def _compute(self, inputs: Mapping[str, Any]) -> None:
        """Let ``self._leaving`` be what leaves the last frozen block, or give the prompt up."""
        ids, mask, tokens = inputs["input_ids"], inputs["attention_mask"], self._prompt.tokens
        self._shared = self._shared or self._pass_prompt(ids[:1, :tokens])
        if self._shared is None:
            return self._stop("a frozen block keeps something else than the keys and values of these tokens")
        prompt, keys = self._shared
        if self._cache is not None:
            self._cache.leave_out(tokens)
        behind = {"input_ids": ids[:, tokens:], "attention_mask": mask, "use_cache": True, self._argument: keys}
        rest = self._run(behind)
        leaving = torch.cat([prompt.expand(len(rest), -1, -1), rest], dim=1)
        if not self._prompt.checked:
            lengths = mask.sum(dim=1)
            tried = torch.stack([lengths.argmax(), lengths.argmin()])
            read = mask[tried] != 0
            whole = self._run_aside({"input_ids": ids[tried], "attention_mask": mask[tried], "use_cache": False})
            if not same_states([leaving[tried][read]], [whole[read]]):
                return self._stop("the states of the first rows differ from those of whole rows")
            self._prompt.checked = True
        self._prompt.batches += 1
        self._leaving = leaving
        return None

    def _stop(self, why: str) -> None:
        log.warning("the prompt that all rows begin with is computed in each of them: %s", why)
        self._prompt.stopped, self._inputs = True, None
        if self._cache is not None:
            self._cache.stop(why)

    def _pass_prompt(self, ids: torch.Tensor) -> tuple[torch.Tensor, Cache] | None:
        kept = new_cache(self._backbone)
        mask = torch.ones_like(ids)
        states = self._run_aside({"input_ids": ids, "attention_mask": mask, "use_cache": True, self._argument: kept})
        shared = put_before_batches(kept, self._blocks, ids.shape[1])
        return None if shared is None else (states, shared)

    def _run_aside(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The same without the cache."""
        with self._cache.standing_aside() if self._cache is not None else nullcontext():
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """What leaves the last frozen block, nothing behind it being run."""
        self._alone, training = True, self._backbone.training
        self._backbone.training = False  # with checkpointing it would leave keys and values away
        try:
            with suppress(Done):
                self._backbone(**inputs)
        finally:
            self._alone, self._backbone.training = False, training
        return self._ran.pop()
