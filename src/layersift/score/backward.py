"""One backward pass over a sample, in which both sides of every linear map's gradient can be looked at.

No weight requires a gradient and none is stored: hooks see what enters a linear map and the loss's gradient at its
output, of each sample although samples share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layersift.data.examples import IGNORED, labelled_batch, sample_losses
from layersift.data.padding import independent_batches
from layersift.data.readable import wrap_model_errors
from layersift.errors import ModelError
from layersift.models.architecture import no_cache
from layersift.represent.hooks import evaluation_mode
from layersift.score.probe import ProbeBatch, require_labels
from layersift.score.weights import linear_maps

TOKEN_BUDGET = 1024  # a backward pass keeps what a forward pass drops


@dataclass(frozen=True)
class Seen:
    """One linear map in one batch: both sides of its gradient."""

    entering: torch.Tensor  # (B, T, k)
    output: torch.Tensor  # (B, T, m), the bias included
    gradient: torch.Tensor  # (B, T, m), of the loss at the output
    rows: list[int]  # the samples
    real: torch.Tensor  # (B, T), 0 where there is padding


Take = Callable[[int, str, nn.Module, Seen], None]


def backward_pass(probe: ProbeBatch, take: Take) -> torch.Tensor:
    """Call ``take`` for every linear map and batch, dropout off; the number of labelled things in each sample (n,)."""
    model, stack = probe.model, probe.stack
    labelled = torch.zeros(len(probe.examples))
    blocks = stack.blocks(model)
    device = next(p for p in blocks[0].parameters() if p.is_floating_point()).device
    lengths = [len(e) + len(e.target or ()) for e in probe.examples]
    crossing: list[torch.Tensor] = []
    entering = _entering_with_gradient(blocks, crossing)
    with (
        wrap_model_errors(model, probe.examples),
        evaluation_mode(model),
        _frozen(model),
        torch.enable_grad(),
        entering,
    ):
        for rows in independent_batches(model, probe.examples, lengths, TOKEN_BUDGET, probe.pad_id):
            members = [probe.examples[i] for i in rows]
            require_labels(members, probe.kind)
            crossing.clear()
            batch = {name: v.to(device) for name, v in labelled_batch(members, probe.pad_id, probe.kind).items()}
            labels = batch["labels"] if probe.seq2seq else batch.pop("labels")
            with _watching(probe, rows, _Masks(probe, batch, crossing), take):
                logits = getattr(model(**batch, **no_cache(model)), "logits", None)
                if logits is None:
                    raise ModelError(
                        f"{type(model).__name__} has no head, so its loss has no gradients; load the model for the task"
                    )
                if logits.ndim != 3 and probe.kind in ("instruction", "text"):
                    raise ModelError(
                        f"{type(model).__name__} does not write text, so text alone has no loss there; give labels, or "
                        "choose a criterion of forward passes"
                    )
                losses, counts = sample_losses(logits, labels, probe.kind, probe.seq2seq)
                torch.autograd.backward(losses.sum())
            labelled[rows] = counts.float().cpu()
            if probe.progress is not None:
                probe.progress(len(rows))
    return labelled


class _Masks:
    """Which tokens are not padding, (B, T) or nothing where all are: those of the tower that a map reads."""

    def __init__(self, probe: ProbeBatch, batch: dict[str, torch.Tensor], crossing: list[torch.Tensor]) -> None:
        self.own = self.read = batch.get("attention_mask")
        if probe.seq2seq and probe.stack.tower == "decoder":
            self.own = batch["labels"] != IGNORED  # what the decoder reads is as long as what it is to write
        self.crossing = crossing

    def widths(self) -> set[int]:
        """How many tokens a sample has in this batch, padding included, in either tower; none of images alone."""
        return {mask.shape[1] for mask in (self.own, self.read) if mask is not None}

    def of(self, entering: torch.Tensor) -> torch.Tensor | None:
        """For what enters a map: what a decoder's block gets from the encoder has the encoder's padding."""
        return self.read if any(entering is given for given in self.crossing) else self.own


@contextmanager
def _watching(probe: ProbeBatch, rows: list[int], masks: _Masks, take: Take) -> Iterator[None]:
    """While active, ``take`` gets both sides of every linear map that sees all tokens of each sample.

    A map that runs several times, as in pieces, is given once, with all of its tokens: the square of a sum is not the
    sum of squares.
    """
    runs: dict[tuple[int, str], int] = {}
    parts: dict[tuple[int, str], list[Seen]] = {}

    def watch(layer: int, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            whole = args and torch.is_tensor(output)  # routers that are called linear return more
            sides = _by_token(args[0].detach(), output.detach(), len(rows), masks.widths()) if whole else None
            if sides is None or not output.requires_grad:
                return
            entering, leaving = sides
            mask, version = masks.of(args[0]), leaving._version
            whole = mask is not None and mask.shape == entering.shape[:2]
            real = mask if whole and mask is not None else entering.new_ones(entering.shape[:2])
            runs[layer, name] = runs.get((layer, name), 0) + 1

            # It may hold nothing that holds the graph, which would then keep itself alive.
            def behind(gradient: torch.Tensor) -> None:
                left = leaving
                if leaving._version != version:  # something was added to the output in place, as Falcon does
                    with torch.no_grad():
                        left = module.forward(entering)
                delta = gradient.detach().reshape(leaving.shape)
                seen = parts.setdefault((layer, name), [])
                seen.append(Seen(entering, left, delta, rows, real))
                if len(seen) == runs[layer, name]:
                    take(layer, name, module, _whole(parts.pop((layer, name))))

            output.register_hook(behind)

        return hook

    blocks, maps = probe.stack.blocks(probe.model), linear_maps(probe.model, probe.stack)
    seeing_all = [(layer, name, module) for layer, name, module in maps if not _is_expert(blocks[layer], name)]
    handles = [module.register_forward_hook(watch(layer, name)) for layer, name, module in seeing_all]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _whole(parts: list[Seen]) -> Seen:
    """One map's runs in a batch as one run over all of their tokens."""
    if len(parts) == 1:
        return parts[0]
    sides = ([getattr(p, side) for p in parts] for side in ("entering", "output", "gradient"))
    entering, output, gradient = (torch.cat(side, dim=1) for side in sides)
    return Seen(entering, output, gradient, parts[0].rows, torch.cat([p.real for p in parts], dim=1))


def _is_expert(block: nn.Module, name: str) -> bool:
    """Whether a map belongs to one of several experts, which sees the tokens that are sent to it. A batch of them may
    happen to be all."""
    parts = name.split(".")
    around = ((part, block.get_submodule(".".join(parts[: i + 1]))) for i, part in enumerate(parts[:-1]))
    lists = (nn.ModuleList, nn.ModuleDict)
    return any(isinstance(m, lists) and "expert" in f"{part} {type(m).__name__}".lower() for part, m in around)


def _by_token(
    x: torch.Tensor, y: torch.Tensor, batch: int, widths: set[int]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both sides as (B, T, ...), or None where rows are not tokens in order.

    Args:
        widths: what T may be; none: not known.
    """
    whole = len(x) % batch == 0 and (not widths or len(x) // batch in widths)
    if x.ndim == 2 and whole and len(x) == len(y):
        return x.reshape(batch, -1, x.shape[-1]), y.reshape(batch, -1, y.shape[-1])
    return (x, y) if x.ndim == 3 and len(x) == batch else None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _entering_with_gradient(blocks: Sequence[nn.Module], crossing: list[torch.Tensor]) -> Iterator[None]:
    """Let the graph begin where states enter a block from elsewhere, as no weight asks for it.

    Those are the hidden states of the first block, and what every block of a decoder gets from the encoder, which is
    added to ``crossing``.
    """

    def start(value: Any, first: bool) -> Any:
        # What a first block gets may have further dimensions, as in Gemma 3n; elsewhere those are attention masks.
        states = (
            torch.is_tensor(value) and value.is_floating_point() and (value.ndim == 3 or (first and value.ndim > 3))
        )
        if not states or value.requires_grad:
            return value
        begun = value.detach().requires_grad_()
        if not first:
            crossing.append(begun)
        return begun

    def hook(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (
            tuple(start(value, i == 0) for i, value in enumerate(args)),
            {name: start(value, name == "hidden_states") for name, value in kwargs.items()},
        )

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
