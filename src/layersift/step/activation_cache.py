"""From the second epoch on, the frozen prefix costs nothing: what enters the first trained block is kept by example.

Nothing below that block changes while training, so its output for an example is the same in every epoch, as long as no
dropout is drawn there. It is kept in the model's own dtype without padding: in memory, or in safetensors files in a
directory, where later trainings on the same model, data and cut find it. Each tensor there has a checksum: one that is
damaged, or not of its example's length, is left out and computed again. In others' loops an example is known by a
digest of all that its states depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from layersift.data.examples import Example
from layersift.errors import LayersiftError
from layersift.represent.hooks import Form, leaving_states
from layersift.represent.read import free_memory

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.25  # of what is free
DISK_SHARE = 0.5


def require_cache_place(setting: str) -> None:
    """Refuse to keep states where they cannot be.

    Raises:
        LayersiftError: the setting names something else than a directory.
    """
    if setting not in ("auto", "off") and Path(setting).exists() and not Path(setting).is_dir():
        raise LayersiftError(f"activation-cache {setting}: not a directory; expected auto, off or a directory")


class ActivationCache:
    """States (T, d) that enter the first trained block, one tensor an example.

    When the cut has moved up, what is kept is run through the newly frozen blocks the next time that it is wanted, and
    kept anew.

    Args:
        directory: where they are kept; None for memory.
        limit: bytes that may be kept; None: in memory all of them, in a directory half of what is free on the disk.
            Examples beyond it are not kept.
        sure: whether what is kept of an example holds in every batch. Else the first batch of which all is kept is
            computed as well, and nothing is served where that differs by more than rounding.
    """

    def __init__(self, directory: Path | None = None, limit: float | None = None, sure: bool = True) -> None:
        self._sure = sure
        self.directory = directory
        self._left = limit if limit is not None or directory is None else DISK_SHARE * _free_disk(directory)
        self.stopped: str | None = None  # why nothing is kept any longer
        self.served = 0  # batches that skipped the prefix
        self._kept: dict[int, Any] = {}  # example -> tensor, or the file that holds it
        self._depths: dict[int, int] = {}  # example -> how many blocks it is through
        self._rows: list[int] = []
        self._spans: list[tuple[int, int, int]] = []  # of each example: its row of the batch, first token, length
        self._visits = 0  # of the last frozen block, in the pass that runs
        self._form = Form()
        self._files = 0
        if directory is not None:
            self._find_files(directory)

    def _find_files(self, directory: Path) -> None:
        damaged = 0
        for path in sorted(directory.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    about = file.metadata() or {}
                    form, sums, depth = Form(int(about["tuple"])), json.loads(about["crc32"]), int(about["depth"])
                    whole = [name for name in sums if _crc32(file.get_tensor(name)) == sums[name]]
            except Exception:  # whatever safetensors makes of a file that a kill cut short, or that is not ours
                damaged += 1
            else:
                self._form = form
                self._kept |= {int(name): path for name in whole}
                self._depths |= {int(name): depth for name in whole}
                damaged += len(whole) < len(sums)
            self._files += 1
        if damaged:
            log.warning("%s: %d files of kept states are damaged; what they held is computed again", directory, damaged)

    def begin(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Say which examples the next forward pass is of, and how many tokens each has."""
        self.begin_spans(rows, [(place, 0, length) for place, length in enumerate(lengths)])

    def begin_spans(self, rows: Sequence[int], spans: Sequence[tuple[int, int, int]]) -> None:
        """The same for examples anywhere in a batch: the row of each, its first token and how many there are."""
        self._rows, self._spans, self._visits = list(rows), list(spans), 0

    def stop(self, why: str) -> None:
        """Keep nothing any longer, and serve nothing of what has been kept."""
        self._stop(why)
        self._kept, self._depths = {}, {}
        self.stand_aside()

    def stand_aside(self) -> None:
        """Serve and keep nothing until the next :meth:`begin`: what runs until then is of other examples."""
        self.begin([], [])

    @contextmanager
    def standing_aside(self) -> Iterator[None]:
        """While active, serve and keep nothing: what runs is not the batch that has begun, or not in its form."""
        begun = self._rows, self._spans, self._visits
        self.stand_aside()
        yield
        self._rows, self._spans, self._visits = begun

    def leave_out(self, tokens: int) -> None:
        """The pass that has begun is of its rows without so many first tokens, which are kept elsewhere."""
        self._spans = [(place, start, length - tokens) for place, start, length in self._spans]

    @property
    def shallowest(self) -> int:
        """How many blocks every example of the batch is through at least; 0 where one is not kept."""
        return self._through if self._sure else 0

    @property
    def _through(self) -> int:
        return min((self._depths.get(row, 0) for row in self._rows), default=0)

    def serve(self, entering: torch.Tensor) -> Any:
        """The states of those examples that are not through more blocks, padded with zeros like ``entering``
        (B, T, d), in a block's form of output."""
        self.served += 1
        return self.put_deeper(self.hand_on(entering.new_zeros(entering.shape)), self.shallowest)

    def put_deeper(self, output: Any, depth: int) -> Any:
        """A block's output with the states of those examples that are kept as of this block."""
        spans = zip(self._rows, self._spans, strict=True)
        deeper = [(row, span) for row, span in spans if self._depths[row] == depth]
        states = leaving_states(output)
        if deeper:
            states = states.clone()
        for row, (place, start, length) in deeper:
            states[place, start : start + length] = self._read(row).to(states)
        return self.hand_on(states)

    def hand_on(self, states: torch.Tensor) -> Any:
        """States unchanged, in a block's form of output."""
        return self._form.put(states)

    def _read(self, row: int) -> torch.Tensor:
        kept = self._kept[row]
        if isinstance(kept, torch.Tensor):
            return kept
        with safe_open(kept, "pt") as file:
            states: torch.Tensor = file.get_tensor(str(row))
        return states

    def keep(self, output: Any, depth: int) -> None:
        """Keep what the last frozen block, the ``depth``-th, gave for the batch, ``output`` being in a block's form."""
        if not self._rows:
            return
        self._visits += 1
        if self._visits > 1 and not self._sure:
            self.stop("a block runs more than once in a pass")
        if self.stopped is not None:
            return
        form = Form.of(output)
        if form is None:
            self._stop("its blocks hand on more than hidden states")
            return
        if leaving_states(output).requires_grad:
            self._stop("what enters the first trained block has a gradient")
            return
        self._form = form
        states = leaving_states(output).detach()
        if not self._sure and self._through == depth:
            self._compare(states)
            return
        new = {
            row: states[place, start : start + length].to("cpu", copy=True).contiguous()
            for row, (place, start, length) in zip(self._rows, self._spans, strict=True)
            if self._depths.get(row, 0) < depth
        }
        if self._left is not None:
            self._left -= sum(states.nbytes for states in new.values())
            if self._left < 0:
                of = "memory" if self.directory is None else f"{self.directory}: its share of the disk"
                self._stop(f"{of} is full")
                return
        if self.directory is None:
            self._kept |= new
        elif new:
            self._write(new, depth)
        self._depths |= dict.fromkeys(new.keys() & self._kept.keys(), depth)

    def _compare(self, states: torch.Tensor) -> None:
        """Whether what is kept of the batch's examples is what has been computed of them, in other company."""
        for row, (place, start, length) in zip(self._rows, self._spans, strict=True):
            computed = states[place, start : start + length].float()
            apart = (self._read(row).to(computed) - computed).norm()
            if not apart <= torch.finfo(states.dtype).eps ** 0.5 * computed.norm():
                self.stop("what a row's states are depends on the batch that it is in")
                return
        self._sure = True

    def _stop(self, why: str) -> None:
        self.stopped = why
        log.warning("states below the first trained block are no longer kept: %s", why)

    def _write(self, new: dict[int, torch.Tensor], depth: int) -> None:
        assert self.directory is not None
        path = self.directory / f"{self._files:06d}-{os.getpid()}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            sums = json.dumps({str(row): _crc32(states) for row, states in new.items()})
            about = {"tuple": str(self._form.length), "depth": str(depth), "crc32": sums}
            save_file({str(row): states for row, states in new.items()}, partial, about)
            partial.rename(path)
        except Exception as error:  # a full disk, whatever safetensors makes of it: training goes on without
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._stop(f"{self.directory}: {error}")
            return
        self._files += 1
        self._kept |= dict.fromkeys(new, path)


def _crc32(states: torch.Tensor) -> int:
    return zlib.crc32(f"{tuple(states.shape)}{states.dtype}".encode() + states.view(torch.uint8).numpy().tobytes())


def cache_key(model_revision: str, blocks: int, computed: Sequence[str], examples: Sequence[Example]) -> str:
    """What a directory of kept states is valid for: the model, the cut, and every token in its place.

    Args:
        computed: how, as far as it changes the figures: dtype, precision, attention kernel, kind of device, versions.
    """
    digest = hashlib.sha256(repr((model_revision, blocks, *computed)).encode())
    for example in examples:
        digest.update(repr((example.input_ids, sorted(example.types.items()))).encode())
    return digest.hexdigest()[:24]


def fits_memory(examples: Sequence[Example], width: int, dtype: torch.dtype, left_out: int = 0) -> bool:
    """Whether the states of all examples, without so many first tokens, take at most a quarter of the free memory."""
    needed = sum(len(e) - left_out for e in examples) * width * torch.empty((), dtype=dtype).element_size()
    return needed <= MEMORY_SHARE * free_memory()


def _free_disk(directory: Path) -> int:
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


Dropout = tuple[nn.Module, str, float]


# In the names of what makes a module draw random numbers while training: dropout of units, paths and layers, noise on a
# router's input.
NOISE = ("dropout", "drop_rate", "drop_prob", "drop_path", "layerdrop", "layer_drop", "jitter")


def dropouts(modules: Sequence[nn.Module]) -> list[Dropout]:
    """Every probability of dropout, or strength of noise, above zero in some modules: module, attribute, value."""
    return [noise for module in modules for part in module.modules() for noise in own_dropouts(part)]


def own_dropouts(module: nn.Module) -> list[Dropout]:
    """Those of a module itself, without its children."""
    drops = isinstance(module, nn.modules.dropout._DropoutNd)
    names = ["p"] if drops else [name for name in vars(module) if any(part in name for part in NOISE)]
    return [(module, name, v) for name in names if isinstance(v := getattr(module, name), float) and v > 0]


def without(noises: Sequence[Dropout]) -> Callable[[], None]:
    """Set the probabilities to zero; what undoes it."""
    for module, name, _ in noises:
        setattr(module, name, 0.0)

    def restore() -> None:
        for module, name, value in noises:
            setattr(module, name, value)

    return restore


NO_INPUT = ("labels", "num_items_in_batch", "input_ids", "attention_mask")  # not read by blocks, or read apart
FROM_POSITIONS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
EVERY_BLOCK = ("output_hidden_states", "output_attentions", "output_router_logits")  # asked of the prefix, too


class Row(NamedTuple):
    """A row of a batch, or one of the documents packed into it."""

    key: int  # what names it
    place: int  # in the batch
    start: int  # of its tokens in the row
    length: int


def batch_rows(inputs: Mapping[str, Any]) -> list[Row] | None:
    """The rows of a batch of token ids (B, T), by all that a model is called with.

    Padding on either side is no part of a row. Where position ids begin anew within a row, each document stands for
    itself. A mask with holes is part of its row.

    Returns:
        None where something else than token ids, masks and whole numbers enters, such as pixels or a cache of keys; or
        where the outputs of every block are asked for.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not torch.is_tensor(ids) or ids.ndim != 2 or any(inputs.get(name) for name in EVERY_BLOCK):
        return None
    if mask is not None and (not torch.is_tensor(mask) or mask.shape != ids.shape):
        return None
    positions = inputs.get("position_ids")
    counted = positions.cpu().numpy() if torch.is_tensor(positions) and positions.shape == ids.shape else None
    shared, by_token, by_row = hashlib.blake2b(digest_size=16), [ids], []
    if torch.is_autocast_enabled(ids.device.type):  # the same row in another precision is another row
        shared.update(str(torch.get_autocast_dtype(ids.device.type)).encode())
    for name, value in sorted(inputs.items()):
        if name in NO_INPUT or (counted is not None and name in FROM_POSITIONS):
            continue
        if not torch.is_tensor(value):
            if not (value is None or isinstance(value, bool | int | float | str)):
                return None
            shared.update(repr((name, value)).encode())
        elif value.is_floating_point() or value.is_complex():
            return None
        elif value.shape == ids.shape:
            by_token.append(value)
        elif value.ndim and len(value) == len(ids):
            by_row.append(value)
        else:
            shared.update(repr((name, value.tolist())).encode())
    read = np.ones(tuple(ids.shape), bool) if mask is None else mask.cpu().numpy() != 0
    tokens = torch.stack([value.long() for value in by_token]).cpu().numpy()
    rows = []
    for place, own in enumerate(read):
        of_row = shared.copy()
        of_row.update(repr([value[place].tolist() for value in by_row]).encode())
        for start, length, offset in _spans(own, None if counted is None else counted[place]):
            digest = of_row.copy()
            digest.update(repr(offset).encode() + np.packbits(own[start : start + length]).tobytes())
            digest.update(np.ascontiguousarray(tokens[:, place, start : start + length]).tobytes())
            rows.append(Row(int.from_bytes(digest.digest(), "big"), place, start, length))
    return rows


def _spans(read: np.ndarray, positions: np.ndarray | None) -> Iterator[tuple[int, int, int | None]]:
    """Start and length of each document of a row, and what of its place in the row it depends on."""
    if positions is not None and read.all() and (beginnings := np.flatnonzero(positions == 0)).size > 1:
        for start, end in zip([*beginnings], [*beginnings[1:], len(read)], strict=True):
            yield int(start), int(end - start), None
        if beginnings[0] > 0:
            yield 0, int(beginnings[0]), None
        return
    places = np.flatnonzero(read)
    start = int(places[0]) if len(places) else 0
    yield start, (int(places[-1]) - start + 1 if len(places) else len(read)), start
