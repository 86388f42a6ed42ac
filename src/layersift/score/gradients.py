r"""Gradients of each sample's loss with respect to every linear map of every block, from one backward pass.

No weight requires a gradient and none is stored: with x_t what enters a linear map at token t and \delta_t the loss's
gradient at its output, the gradient of its weight is G = \sum_t \delta_t x_t^T, and what criteria ask of G follows
from the two sides:

- |G|^2 = \sum_{t,u} (\delta_t \cdot \delta_u) (x_t \cdot x_u), exactly, from two T x T matrices;
- <W, G> = \sum_t \delta_t \cdot W x_t, from the output itself;
- inner products of different samples' gradients from a sketch C G A^T. A is what a LoRA adapter's A is, and G A^T the
  gradient of its B = 0; C shrinks the other side alike, so that a sketch of 16 x 64 numbers a sample can be kept.

Left out is what a map does to something else than the samples' tokens, as DeBERTa's maps of queries and keys do to its
relative positions, and maps that see some tokens only, as experts do.

So a pass needs the activations that backpropagation needs anyway, whatever the base weights are stored as, and each
sample's gradient is had although samples share a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from layersift.data.examples import IGNORED, independent_batches, labelled_batch, sample_losses, wrap_model_errors
from layersift.errors import ModelError
from layersift.models.stacks import no_cache
from layersift.processes import from_all_processes, own_share, sum_over_processes
from layersift.represent.hooks import evaluation_mode
from layersift.score.probe import ProbeBatch, require_labels
from layersift.score.weights import linear_maps, weight_of

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
    """Call ``take`` for every linear map and batch, dropout off; the number of labelled things in each sample (n,).

    Among several processes each calls it for its share of the samples; :func:`sum_over_processes` then adds up.
    """
    model, stack = probe.model, probe.stack
    require_labels(probe.examples, probe.kind)
    share = own_share(len(probe.examples))
    mine = [probe.examples[i] for i in share]
    labelled = torch.zeros(len(probe.examples))
    blocks = stack.blocks(model)
    device = next(p for p in blocks[0].parameters() if p.is_floating_point()).device
    lengths = [len(e) + len(e.target or ()) for e in mine]
    crossing: list[torch.Tensor] = []
    entering = _entering_with_gradient(blocks, crossing)
    with (
        wrap_model_errors(model, probe.examples),
        evaluation_mode(model),
        _frozen(model),
        torch.enable_grad(),
        entering,
    ):
        for batch_of_mine in independent_batches(model, mine, lengths, TOKEN_BUDGET, probe.pad_id):
            rows, members = [share[i] for i in batch_of_mine], [mine[i] for i in batch_of_mine]
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
    return sum_over_processes({"labelled": labelled})["labelled"]


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


SKETCH = (16, 64)


@dataclass(frozen=True)
class ModuleGradients:
    """What is kept of one linear map's gradients, of each of n samples."""

    layer: int
    name: str  # relative to its block
    parameters: int
    weight_norm: float
    squared_norm: torch.Tensor  # (n,) |G|^2
    inner: torch.Tensor  # (n,) <W, G>
    sketch: torch.Tensor  # (n, 16 x 64), inner products of which are those of the gradients, up to chance


@dataclass(frozen=True)
class Gradients:
    """Gradients of the samples' negative log-likelihoods (of a response, summed over its tokens)."""

    modules: tuple[ModuleGradients, ...]
    labelled: torch.Tensor  # (n,) tokens, or other labelled things, in each sample

    def of(self, samples: torch.Tensor) -> Gradients:
        """The same of some of the samples."""
        modules = tuple(
            replace(m, squared_norm=m.squared_norm[samples], inner=m.inner[samples], sketch=m.sketch[samples])
            for m in self.modules
        )
        return Gradients(modules, self.labelled[samples])

    def joined(self, other: Gradients) -> Gradients:
        """The gradients of two samples as those of one."""
        modules = tuple(
            replace(
                a,
                squared_norm=torch.cat([a.squared_norm, b.squared_norm]),
                inner=torch.cat([a.inner, b.inner]),
                sketch=torch.cat([a.sketch, b.sketch]),
            )
            for a, b in zip(self.modules, other.modules, strict=True)
        )
        return Gradients(modules, torch.cat([self.labelled, other.labelled]))

    def mean_a_label(self, values: torch.Tensor) -> float:
        """Mean of values (n,) over the labels of each sample; samples without a label, which have no loss, left out."""
        some = self.labelled > 0
        return float((values[some] / self.labelled[some]).mean())

    def by_layer(self, num_layers: int) -> list[list[ModuleGradients]]:
        """The modules of each layer."""
        return [[m for m in self.modules if m.layer == layer] for layer in range(num_layers)]


def read_gradients(probe: ProbeBatch) -> Gradients:
    """The gradients of all samples of ``probe``.

    Raises:
        ModelError: the model has no head that a loss could be taken of, or its blocks hold no linear maps.
    """
    count = len(probe.examples)
    by_module: dict[tuple[int, str], ModuleGradients] = {}

    def take(layer: int, name: str, module: nn.Module, seen: Seen) -> None:
        if (layer, name) not in by_module:
            weight = weight_of(module)
            empty = partial(torch.zeros, count)
            by_module[layer, name] = ModuleGradients(
                layer,
                name,
                weight.numel(),
                float(weight.float().norm()),
                empty(),
                empty(),
                empty(SKETCH[0] * SKETCH[1]),
            )
        place = by_module[layer, name]
        x, delta = seen.entering.float(), seen.gradient.float()
        bias = getattr(module, "bias", None)
        output = seen.output.float() - (bias.float() if isinstance(bias, torch.Tensor) else 0.0)
        squared = ((x @ x.mT) * (delta @ delta.mT)).sum(dim=(1, 2))
        left, right = _projections(probe.seed, f"{layer}:{name}", delta.shape[-1], x.shape[-1], x.device)
        sketch = (delta @ left).mT @ (x @ right)
        place.squared_norm[seen.rows] = squared.cpu()
        place.inner[seen.rows] = (delta * output).sum(dim=(1, 2)).cpu()
        place.sketch[seen.rows] = sketch.flatten(1).cpu()

    labelled = backward_pass(probe, take)
    modules = _from_all_shares(by_module)
    if not modules:
        raise ModelError(f"{type(probe.model).__name__} has no linear maps in its blocks that see every token")
    return Gradients(tuple(modules), labelled)


SIDES = ("squared_norm", "inner", "sketch")  # of a module's gradients, what has a row a sample


def _from_all_shares(mine: dict[tuple[int, str], ModuleGradients]) -> list[ModuleGradients]:
    """In the order of layers and names; each process has the rows of its share, and zeros in the others."""
    known: dict[tuple[int, str], tuple[int, float]] = {}
    for of_process in from_all_processes({key: (m.parameters, m.weight_norm) for key, m in mine.items()}):
        known |= of_process
    sums = sum_over_processes({(*key, side): getattr(m, side) for key, m in mine.items() for side in SIDES})
    return [
        ModuleGradients(layer, name, *of, *(sums[layer, name, side] for side in SIDES))
        for (layer, name), of in sorted(known.items())
    ]


def _projections(
    seed: int, name: str, out_features: int, in_features: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian C^T (m, 16) and A^T (k, 64), scaled so that the sketch keeps inner products on average."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    left = torch.randn(out_features, SKETCH[0], generator=generator) / SKETCH[0] ** 0.5
    right = torch.randn(in_features, SKETCH[1], generator=generator) / SKETCH[1] ** 0.5
    return left.to(device), right.to(device)


DIRECTIONS = min(SKETCH)


def module_energies(gradients: Gradients) -> dict[tuple[int, str], tuple[float, ...]]:
    """Energies, the largest first, of each module by layer and name within its block."""
    labels = float(gradients.labelled.sum())
    energies = {}
    for module in gradients.modules:
        mean = module.sketch.double().sum(dim=0).reshape(SKETCH) / labels
        energies[module.layer, module.name] = tuple(torch.linalg.svdvals(mean).square().tolist())
    return energies
