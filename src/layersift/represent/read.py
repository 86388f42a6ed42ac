"""Read the representations R_0 ... R_M of a sample of data in one forward pass of the backbone.

Hooks on the blocks keep one row a sample and block; the pass is cut off behind the last block, so neither the final
norm nor any head runs, in any architecture. R_i is the raw output of a block: `output_hidden_states` would give the
last one after the final norm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layersift.data.examples import Example, collate, independent_batches, wrap_model_errors
from layersift.errors import ModelError
from layersift.measures import TokenMeasure
from layersift.models.stacks import BlockStack, is_encoder_decoder, no_cache
from layersift.processes import from_all_processes, own_share
from layersift.represent.causal import Beginning, Forwarded, plan_forward
from layersift.represent.hooks import Done, evaluation_mode, execution_device, is_offloaded, pass_by_blocks, read_blocks
from layersift.represent.positions import Position, read_position, token_weights

Rows = dict[str, list[torch.Tensor]]  # by position: what was read of R_0 ... R_M of a batch


class Reader:
    """Reads each R_i of one batch at every position as it passes by, and measures it against R_{i-1}."""

    def __init__(
        self,
        positions: Sequence[Position],
        measures: Sequence[TokenMeasure],
        view: Callable[[int], list[Example]],
    ) -> None:
        self.positions, self.measures, self._view = positions, measures, lru_cache(maxsize=1)(view)
        self.rows: Rows = {p.name: [] for p in positions}
        self.between: dict[str, dict[str, list[torch.Tensor]]] = {
            p.name: {m.name: [] for m in measures} for p in positions
        }
        self.previous: torch.Tensor | None = None
        self._weights: dict[tuple[str, int], torch.Tensor] = {}

    def _weights_of(self, position: Position, hidden: torch.Tensor) -> torch.Tensor:
        key = (position.name, hidden.shape[1])
        if key not in self._weights:
            self._weights[key] = token_weights(position, self._view(hidden.shape[1])).to(hidden.device)
        return self._weights[key]

    def read(self, hidden: torch.Tensor) -> None:
        """``hidden`` (B, T, d) is R_i of the batch, i counting the calls from 0."""
        for position in self.positions:
            self.rows[position.name].append(read_position(hidden, self._weights_of(position, hidden)))
        if not self.measures:
            return
        if self.previous is not None:
            self._measure(self.previous, hidden)
        self.previous = hidden

    def wait_on_the_cpu(self) -> None:
        """Until the next block, which other batches pass through first."""
        self.previous = None if self.previous is None else self.previous.cpu()

    def _measure(self, before: torch.Tensor, after: torch.Tensor) -> None:
        for measure in self.measures:
            values = measure.between(before.to(after.device).float(), after.float())
            for position in self.positions:
                weights = self._weights_of(position, after)
                mean = torch.where(weights > 0, values * weights, 0.0).sum(dim=1)
                self.between[position.name][measure.name].append(mean)

    def replace_last(self, hidden: torch.Tensor) -> None:
        """Read R_M from ``hidden`` instead."""
        for position in self.positions:
            self.rows[position.name][-1] = read_position(hidden, self._weights_of(position, hidden))


class Kept:
    """What stays of a pass at one position: a row a sample and block, where the block runs until the pass is over."""

    def __init__(self, samples: int) -> None:
        self.samples, self.states = samples, list[torch.Tensor]()
        self.between: dict[str, torch.Tensor] = {}

    def merge(self, share: Sequence[int]) -> None:
        """Move it to the CPU, and put in what the other processes have read, exactly as they read it."""
        shares = from_all_processes((list(share), *self._of(share)))
        self.states = []
        for rows, states, between in shares:
            if not rows:  # more processes than samples
                continue
            if not self.states:
                self.states = [torch.empty(self.samples, state.shape[1]) for state in states]
                self.between = {name: torch.empty(len(values), self.samples) for name, values in between.items()}
            for mine, theirs in zip(self.states, states, strict=True):
                mine[rows] = theirs
            for name, values in between.items():
                self.between[name][:, rows] = values

    def _of(self, share: Sequence[int]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        rows = list(share)
        return [state[rows].cpu() for state in self.states], {name: v[:, rows] for name, v in self.between.items()}

    def put(self, batch: list[int], rows: list[torch.Tensor], between: dict[str, list[torch.Tensor]]) -> None:
        """Keep what was read of one batch."""
        if not self.states:
            self.states = [row.new_empty(self.samples, row.shape[1]) for row in rows]
            self.between = {name: torch.empty(len(values), self.samples) for name, values in between.items()}
        for state, row in zip(self.states, rows, strict=True):
            state[batch] = row
        for name, values in between.items():
            self.between[name][:, batch] = torch.stack([v.cpu() for v in values])


ON_A_CPU, ON_A_GPU = 4096, 32768  # more is no faster
FEWEST = 512
MEMORY_SHARE = 0.25  # of what is free; a batch that does not fit all the same is halved


def affordable_tokens(block: nn.Module, device: torch.device) -> int:
    """Padded tokens a batch, a power of two, so that small changes of the free memory change nothing.

    A block holds a few vectors of its widest map's width for each token, and a few of the hidden states' width.
    """
    sides = [side for p in block.parameters() if p.ndim >= 2 and p.shape[-1] > 1 for side in p.shape[-2:]]
    # Quantised weights are packed; their modules know their sides.
    sides += [getattr(m, side) for m in block.modules() for side in ("in_features", "out_features") if hasattr(m, side)]
    widest, narrowest = max(sides, default=1), min(sides, default=1)
    size = next((p.element_size() for p in block.parameters() if p.is_floating_point()), 4)
    affordable = MEMORY_SHARE * _free_bytes(device) / (size * (4 * widest + 8 * narrowest))
    most = ON_A_GPU if device.type == "cuda" else ON_A_CPU
    budget = most
    while budget > affordable and budget > FEWEST:
        budget //= 2
    return budget


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return free_memory()
    # What PyTorch's allocator keeps for reuse is not free to the driver, but it is to this process.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def free_memory() -> float:
    """Bytes of memory that are available, the page cache included; no limit where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return float("inf")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


Progress = Callable[[int], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Representations:
    """R_0 ... R_M at one position: the input of the first block, and the output of each.

    Args:
        states: R_0 ... R_M, each (n, d), float32, on the CPU; row j belongs to sample j.
        dtype: of the model that produced them; its rounding limits what counts as variation.
        seconds: how long the forward pass took.
        tokens: how many were read, padding excluded.
        between: (M, n) by token measure, of each layer's input and output, averaged over the position's tokens.

    Examples:
        >>> from layersift import find_stack, read_representations
        >>> from transformers import AutoModel, AutoTokenizer
        >>> model, tokenizer = AutoModel.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
        >>> batch = tokenizer(["a b c", "d e"], padding=True, return_tensors="pt")
        >>> read = read_representations(model, find_stack(model), [batch], ["last"])["last"]
        >>> read.num_layers, read.states[-1].shape, read.tokens
        (4, torch.Size([2, 32]), 9)
    """

    states: tuple[torch.Tensor, ...]
    dtype: torch.dtype
    seconds: float
    tokens: int
    between: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """M; layer i (from 0) maps ``states[i]`` to ``states[i + 1]``."""
        return len(self.states) - 1

    def of(self, samples: torch.Tensor) -> Representations:
        """The same of some of the samples, given by their rows."""
        states = tuple(state[samples] for state in self.states)
        return replace(self, states=states, between={name: values[:, samples] for name, values in self.between.items()})

    def joined(self, other: Representations) -> Representations:
        """The same of two samples one behind the other."""
        return replace(
            self,
            states=tuple(torch.cat(pair) for pair in zip(self.states, other.states, strict=True)),
            seconds=self.seconds + other.seconds,
            tokens=self.tokens + other.tokens,
            between={name: torch.cat([values, other.between[name]], dim=1) for name, values in self.between.items()},
        )


def _views(members: Sequence[Example], stack: BlockStack, tokens: int) -> list[Example]:
    """The samples as this stack sees them: an encoder-decoder's decoder reads the targets, a tower its own tokens."""
    if stack.tower == "decoder" and members[0].target is not None:
        members = [e.decoder_side() for e in members]
    own = not members[0].input_ids or max(len(e) for e in members) != tokens
    return [e.seen_as(tokens) for e in members] if own else list(members)


def _inputs(
    backbone: Any, stack: BlockStack, members: Sequence[Example], pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    batch = {name: value.to(device) for name, value in collate(members, pad_id).items()}
    labels = batch.pop("labels", None)
    if labels is not None and stack.tower == "decoder":
        if not hasattr(backbone, "prepare_decoder_input_ids_from_labels"):
            raise ModelError(f"{type(backbone).__name__} has no head that writes; its decoder cannot read responses")
        batch["decoder_input_ids"] = backbone.prepare_decoder_input_ids_from_labels(labels=labels)
    return batch


@dataclass(frozen=True)
class Batching:
    """How samples become batches; neither decides what is read of them."""

    pad_id: int = 0  # fills up the shorter samples of a batch; masked
    # Padded tokens in one batch, which set the memory needed. None: by the memory at hand; where it runs out, the
    # batches are halved.
    token_budget: int | None = None


def represent(
    model: nn.Module,
    stack: BlockStack,
    examples: Sequence[Example],
    positions: Position | Sequence[Position],
    *,
    measures: Sequence[TokenMeasure] = (),
    batching: Batching = Batching(),
    post_norm_last: bool = False,
    progress: Progress | None = None,
) -> dict[str, Representations]:
    """R_0 ... R_M of ``examples`` by the name of each position, all in one forward pass.

    Among several processes (Accelerate, torchrun) each forwards its share of the samples, and all of them return all.

    Args:
        measures: also applied to each token's states before and behind every block.
        post_norm_last: read R_M from the backbone's ``last_hidden_state``, that is after the final norm where the
            architecture has one, as the published scripts do.
        progress: called with the number of samples done after each batch.

    Raises:
        DataError: a sample has no token at the position.
        ModelError: the blocks do not exchange hidden states of shape (B, T, d), or did not all run.
    """
    started = time.perf_counter()
    positions = [positions] if isinstance(positions, Position) else list(positions)
    blocks = stack.blocks(model)
    if post_norm_last and is_encoder_decoder(model):
        raise ModelError("the published scripts know encoders and decoders, not both in one; leave --compat paper away")
    through = _Pass(
        getattr(model, "base_model", model) if post_norm_last else model,
        stack,
        blocks,
        batching.pad_id,
        execution_device(blocks[0]),
        post_norm_last,
        lambda members: Reader(positions, measures, partial(_views, members, stack)),
    )
    dtype = next(p.dtype for p in blocks[0].parameters() if p.is_floating_point())
    kept = {p.name: Kept(len(examples)) for p in positions}
    share = own_share(len(examples))
    tokens = sum(map(len, examples))

    def keep(batch: list[int], reader: Reader) -> None:
        for name, place in kept.items():
            place.put(batch, reader.rows[name], reader.between[name])
        if progress is not None:
            progress(len(batch))

    with evaluation_mode(model), wrap_model_errors(model, examples):
        one_by_one = any(map(is_offloaded, blocks))
        forwarded = (
            Forwarded(tuple(examples))
            if one_by_one
            else plan_forward(through.backbone, stack, examples, positions, post_norm_last, through.device, blocks)
        )
        lengths = [len(forwarded.examples[i]) for i in share]
        budget = batching.token_budget or affordable_tokens(blocks[0], through.device)
        mine = [forwarded.examples[i] for i in share]
        say = None if one_by_one else partial(_leaving, through)
        together = independent_batches(model, mine, lengths, budget, batching.pad_id, say)
        batches = [[share[i] for i in batch] for batch in together]
        (_block_by_block if one_by_one else _batch_by_batch)(through, forwarded, batches, keep)
    for place in kept.values():
        place.merge(share)
    seconds = time.perf_counter() - started
    return {name: Representations(tuple(k.states), dtype, seconds, tokens, k.between) for name, k in kept.items()}


Keep = Callable[[list[int], Reader], None]


@dataclass(frozen=True)
class _Pass:
    """How batches go through the model."""

    backbone: Any
    stack: BlockStack
    blocks: Sequence[nn.Module]
    pad_id: int
    device: torch.device
    post_norm_last: bool
    reader: Callable[[list[Example]], Reader]

    def inputs(self, members: Sequence[Example], beginning: Beginning | None) -> dict[str, Any]:
        """What the model reads of some samples."""
        if beginning is None:
            return _inputs(self.backbone, self.stack, members, self.pad_id, self.device) | no_cache(self.backbone)
        rest = _inputs(self.backbone, self.stack, beginning.rest(members), self.pad_id, self.device)
        return beginning.inputs(rest)


def _batch_by_batch(through: _Pass, forwarded: Forwarded, batches: list[list[int]], keep: Keep) -> None:
    """Each batch through all blocks; one that does not fit into memory is halved."""
    while batches:
        batch = batches.pop(0)
        members = [forwarded.examples[i] for i in batch]
        reader = through.reader(members)
        try:
            _forward(through, members, forwarded.beginning, reader)
        except RuntimeError as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
            log.warning("memory ran out on a batch of %d samples; batches are halved", len(batch))
            # Longest first: if this batch is too large, so are those that follow.
            batches = [half for whole in (batch, *batches) for half in _halves(whole)]
            continue
        keep(batch, reader)


def _block_by_block(through: _Pass, forwarded: Forwarded, batches: list[list[int]], keep: Keep) -> None:
    """All batches through each block."""
    members = [[forwarded.examples[i] for i in batch] for batch in batches]
    readers = [through.reader(m) for m in members]

    def read(number: int, place: int, hidden: torch.Tensor) -> None:
        readers[number].read(hidden)
        readers[number].wait_on_the_cpu()

    inputs = [through.inputs(m, None) for m in members]
    try:
        outputs = pass_by_blocks(through.backbone, through.blocks, inputs, read, stop=not through.post_norm_last)
    except RuntimeError as error:
        if max(map(len, batches)) == 1 or not out_of_memory(error):
            raise
        log.warning("memory ran out on batches of up to %d samples; they are halved", max(map(len, batches)))
        _block_by_block(through, forwarded, [half for batch in batches for half in _halves(batch)], keep)
        return
    for number, output in enumerate(outputs):
        readers[number].replace_last(output.last_hidden_state)
    for batch, reader in zip(batches, readers, strict=True):
        keep(batch, reader)


def _leaving(through: _Pass, inputs: dict[str, Any]) -> torch.Tensor:
    """What leaves the last block; nothing behind it runs."""
    seen: list[torch.Tensor] = []
    with suppress(Done), read_blocks(through.blocks, lambda place, hidden: seen.append(hidden), stop=True):
        through.backbone(**inputs | no_cache(through.backbone))
    return seen[-1]


def _halves(batch: list[int]) -> list[list[int]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]


def _forward(through: _Pass, members: Sequence[Example], beginning: Beginning | None, reader: Reader) -> None:
    """One batch, read by ``reader``."""
    runs = [0] * (len(through.blocks) + 1)
    output = None

    def read(place: int, hidden: torch.Tensor) -> None:
        runs[place] += 1
        reader.read(hidden if beginning is None else beginning.whole(place, hidden))

    with suppress(Done), read_blocks(through.blocks, read, stop=not through.post_norm_last):
        output = through.backbone(**through.inputs(members, beginning))
    if max(runs) > 1:
        looped = [i - 1 for i, count in enumerate(runs) if i and count > 1]
        raise ModelError(
            f"blocks {looped[0]} to {looped[-1]} run {max(runs)} times in a forward pass, so that no one input and "
            "output stands for them; choose a criterion that reads gradients or weights (--criterion fisher, spectrum)"
        )
    if min(runs) < 1:
        raise ModelError(f"expected each block to run in a forward pass; runs of inputs and outputs seen: {runs}")
    if through.post_norm_last and output is not None:
        final = output.last_hidden_state
        reader.replace_last(final if beginning is None else beginning.whole(-1, final))
