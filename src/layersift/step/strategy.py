"""Train the adapted layers by a strategy: progressive freezing, layers in rotation, gradients handed past some blocks.

What rests is frozen as it was trained, so that the frozen prefix reaches up to the first layer that is trained now, and
its optimizer state is freed where it is never trained again. Which layers are trained depends on the step alone: a
training that is resumed goes on as it would have. Convergence-based freezing follows the data: it moves past a layer
whose output has stopped changing.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from layersift.config.train import CONVERGING, STATIC, Strategy, parse_strategy
from layersift.errors import LayersiftError, ModelError
from layersift.measures.cka import u_centre
from layersift.models.stacks import find_stacks
from layersift.represent.hooks import Done, entering_states, evaluation_mode, read_blocks, wrap_forward
from layersift.step.activation_cache import ActivationCache
from layersift.step.callback import FrozenPrefix
from layersift.step.prefix import plain_model
from layersift.step.shared_prompt import SharedPrompt

PROBE = 64  # rows


class Convergence:
    """Where the cut of a training lies by what has converged so far.

    Args:
        directory: where looks are kept: that of the training's checkpoints.
        step: at which the training begins, above 0 where it is resumed.
        steps: of the whole training.

    Raises:
        LayersiftError: what is resumed has not kept its last look.
    """

    def __init__(self, strategy: Strategy, directory: Path, step: int, steps: int) -> None:
        self.strategy, self._directory, self._steps = strategy, directory, steps
        self.moves: tuple[tuple[int, int], ...] = ()  # at which step the cut came to lie below which layer
        self._grams: torch.Tensor | None = None  # of the last look (M, n, n)
        at = strategy.looks(steps)
        for path in directory.glob("converging-*.safetensors"):
            if int(path.stem.rpartition("-")[2]) >= step:  # of another training, or to be made again
                path.unlink()
        if before := [look for look in at if look < step]:
            self._read(before[-1])

    @property
    def lowest(self) -> int:
        """The lowest layer that is not below the cut."""
        return self.moves[-1][1] if self.moves else 0

    @property
    def followed(self) -> str:
        """What has come of it, as a strategy of its own; see :class:`layersift.config.train.Strategy`."""
        # Rounded down, so that the step is the first one that is not before this share.
        shares = [(layer, math.floor(step / self._steps * 1e9) / 1e9) for step, layer in self.moves]
        cuts = ",".join(f"{layer}@{format(share, '.9f').rstrip('0')}" for layer, share in shares)
        return f"freezing:{cuts}" if cuts else STATIC

    def look(self, step: int, last: int, read: Callable[[], torch.Tensor]) -> None:
        """Look at the model where it is time, and move the cut.

        Args:
            last: the highest layer that the cut may come to lie below.
            read: gives the Gram matrices (M, n, n) of the representations that the layers give now.
        """
        if step not in self.strategy.looks(self._steps):
            return
        now = read()
        if self._grams is not None:
            changing = [i for i, cka in enumerate(similarities(self._grams, now)) if not cka >= self.strategy.converged]
            lowest = min(changing[0] if changing else last, last)
            if lowest > self.lowest:
                self.moves = (*self.moves, (step, lowest))
        self._grams = now
        self._write(step)

    def _place(self, step: int) -> Path:
        return self._directory / f"converging-{step}.safetensors"

    def _write(self, step: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._place(step).with_suffix(".partial")
        assert self._grams is not None
        save_file({"grams": self._grams}, partial, {"moves": json.dumps(self.moves)})
        partial.rename(self._place(step))

    def _read(self, step: int) -> None:
        try:
            with safe_open(self._place(step), "pt") as file:
                self._grams = file.get_tensor("grams")
                self.moves = tuple((at, layer) for at, layer in json.loads((file.metadata() or {})["moves"]))
        except Exception as error:  # whatever safetensors makes of a file that is not there or cut short
            raise LayersiftError(
                f"{self._place(step)}: strategy converging cannot go on without its last look ({error}); begin anew"
            ) from None


def similarities(before: torch.Tensor, now: torch.Tensor) -> list[float]:
    """Debiased CKA of each layer's representations with those of the look before; (M, n, n) Gram matrices.

    NaN where a layer's representations are constant.
    """
    values = []
    for old, new in zip(before.double(), now.double(), strict=True):
        k, l = u_centre(old), u_centre(new)  # noqa: E741 - as the measure's formula calls them
        norm = math.sqrt(float(k.square().sum()) * float(l.square().sum()))
        values.append(float((k * l).sum()) / norm if norm > 0 else math.nan)
    return values


def probe_of(dataloader: Any, model: nn.Module, size: int) -> list[dict[str, Any]]:
    """Batches of ``size`` of at most :data:`PROBE` training rows, evenly from all, as a forward pass takes them.

    Raises:
        LayersiftError: the data have no length, as those that are streamed.
    """
    rows = dataloader.dataset
    try:
        count = len(rows)
    except TypeError:
        raise LayersiftError("strategy converging looks at rows all over the data; these are streamed") from None
    places = np.unique(np.linspace(0, count - 1, min(PROBE, count)).round().astype(int)).tolist()
    taken = set(inspect.signature(model.forward).parameters) - {"labels"}
    batches = []
    for start in range(0, len(places), size):
        with torch.random.fork_rng([]):  # a collator may draw random masks
            batch = dataloader.collate_fn([rows[place] for place in places[start : start + size]])
        batches.append({name: value for name, value in batch.items() if name in taken})
    return batches


def read_grams(model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Gram matrices (M, n, n), float32, of the mean hidden state of each row behind each block."""
    device = next(model.parameters()).device
    read: list[list[torch.Tensor]] = [[] for _ in blocks]
    with evaluation_mode(model):
        for batch in batches:
            inputs = {name: v.to(device) if torch.is_tensor(v) else v for name, v in batch.items()}
            mask = inputs.get("attention_mask")

            def keep(layer: int, hidden: torch.Tensor, mask: Any = mask) -> None:
                if layer:
                    read[layer - 1].append(_means(hidden, mask))

            with read_blocks(blocks, keep, stop=True), suppress(Done):
                model(**inputs)
    rows = [torch.cat(states) for states in read]
    return torch.stack([(states @ states.T).float() for states in (r - r.mean(dim=0) for r in rows)]).cpu()


def _means(hidden: torch.Tensor, mask: Any) -> torch.Tensor:
    """The mean hidden state (B, d) over the tokens that are attended to."""
    hidden = hidden.double()
    if torch.is_tensor(mask) and mask.shape == hidden.shape[:2]:
        weights = mask.to(hidden)[..., None]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    return hidden.mean(dim=1)


log = logging.getLogger(__name__)


class TrainingStrategy(FrozenPrefix):
    """A strategy while a Trainer trains; for transformers' Trainer, TRL's SFTTrainer and their kin.

    ``SFTTrainer(..., callbacks=[TrainingStrategy("freezing")])``; instead of :class:`FrozenPrefix`, which it includes.

    Args:
        strategy: as in a recipe, see docs/strategies.md; or a :class:`Strategy`.
        dropout: whether the prefix draws dropout while training, as the whole model does.
        cache: where outputs of the prefix are kept, as for :class:`~layersift.FrozenPrefix`.
        cache_bytes: the most that is kept.

    Raises:
        LayersiftError: no such strategy, or no such place for a cache.

    Examples:
        >>> from layersift import TrainingStrategy
        >>> callback = TrainingStrategy("freezing", cache="auto")  # Trainer(..., callbacks=[callback])
        >>> callback.strategy.freezes
        True
    """

    def __init__(
        self,
        strategy: str | Strategy = STATIC,
        dropout: bool = True,
        cache: str = "off",
        cache_bytes: int | None = None,
    ) -> None:
        super().__init__(dropout, cache, cache_bytes)
        self.strategy = parse_strategy(strategy) if isinstance(strategy, str) else strategy
        self._exchanges = False  # whether processes may exchange other gradients from step to step
        self._layers: dict[int, list[nn.Parameter]] = {}  # of each adapted layer, what is trained
        self._blocks: list[nn.Module] = []
        self._now: tuple[int, ...] = ()
        self._passed: dict[nn.Module, bool] = {}  # whether a block's gradient is handed past it at this step
        self._undo: list[Callable[[], None]] = []
        self._convergence: Convergence | None = None
        self._probe: list[dict[str, Any]] = []

    @property
    def followed(self) -> str | None:
        """What strategy converging has come to, as a strategy of its own; None for the others."""
        return None if self._convergence is None else self._convergence.followed

    @classmethod
    def with_cache(
        cls,
        cache: ActivationCache | None,
        dropout: bool,
        strategy: str | Strategy = STATIC,
        prompt: SharedPrompt | None = None,
    ) -> TrainingStrategy:
        """For our own Trainer, which tells a cache which examples each batch is of, exchanges whatever gradients there
        are, and knows what all rows begin with."""
        callback = cls(strategy, dropout)
        callback._cache, callback._exchanges, callback._prompt = cache, True, prompt
        return callback

    def _own_cache(self, model: nn.Module, state: Any) -> ActivationCache | None:
        return super()._own_cache(model, state) if self.strategy.keeps_prefix else None

    def _as_at_the_end(self, model: nn.Module) -> AbstractContextManager[None]:
        return trained_in_the_end(model, self.strategy)

    def _prepare(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Find the adapted layers, and begin where ``state`` says that the training is.

        Raises:
            LayersiftError: there are several processes, whose gradients are exchanged by a list made once.
            SelectionError, ModelError: the strategy cannot be followed on this model.
        """
        if self.strategy.name == STATIC:
            return
        exchanged = self._exchanges and self.strategy.name != CONVERGING  # which looks at one process's rows
        if getattr(args, "world_size", 1) > 1 and self.strategy.name != "skipping" and not exchanged:
            raise LayersiftError(f"strategy {self.strategy.name}: one process trains; {args.world_size} were started")
        self._blocks, self._layers = adapted_layers(kwargs["model"])
        self.strategy.require_layers(tuple(self._layers), len(self._blocks))
        if self.strategy.name == CONVERGING:
            place = Path(args.output_dir)
            self._convergence = Convergence(self.strategy, place, state.global_step, state.max_steps)
            size = args.per_device_train_batch_size
            self._probe = probe_of(kwargs["train_dataloader"], plain_model(kwargs["model"]), size)
        self._train(self._wanted(args, state), kwargs.get("optimizer"))
        if self.strategy.name == "skipping":
            passable = [self._blocks[i] for i in range(min(self._layers), len(self._blocks)) if i not in self._layers]
            self._passed = dict.fromkeys(passable, False)
            self._undo = [hand_past(block, functools.partial(self._passed.__getitem__, block)) for block in passable]

    def _change(self, args: Any, state: Any, **kwargs: Any) -> None:
        if self.strategy.name == "skipping":
            drawn = np.random.default_rng([args.seed, state.global_step]).random(len(self._passed))
            for block, number in zip(self._passed, drawn, strict=True):
                self._passed[block] = bool(number < self.strategy.share)
        if self.strategy.name not in ("freezing", CONVERGING, "rotating"):
            return
        if self._convergence is not None:
            if self._cache is not None:
                self._cache.stand_aside()
            model = plain_model(kwargs["model"])
            read = functools.partial(read_grams, model, self._blocks, self._probe)
            self._convergence.look(state.global_step, max(self._layers), read)
        wanted = self._wanted(args, state)
        if wanted != self._now:
            self._leave()
            self._train(wanted, kwargs.get("optimizer"))
            self._enter(kwargs["model"])

    def _restore(self) -> None:
        for undo in self._undo:
            undo()
        super()._restore()
        for parameters in self._layers.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self._layers, self._blocks, self._now, self._passed, self._undo = {}, [], (), {}, []
        self._probe = []

    def _rests(self) -> bool:
        return len(self._now) < len(self._layers)

    def _wanted(self, args: Any, state: Any) -> tuple[int, ...]:
        adapted = tuple(self._layers)
        if self._convergence is not None:
            return tuple(layer for layer in adapted if layer >= self._convergence.lowest)
        return self.strategy.trained(adapted, len(self._blocks), state.global_step, state.max_steps, args.seed)

    def _train(self, wanted: tuple[int, ...], optimizer: Any) -> None:
        """Let the wanted layers alone require gradients."""
        kept = getattr(optimizer, "optimizer", optimizer)  # inside of Accelerate's wrapper
        for layer, parameters in self._layers.items():
            for parameter in parameters:
                parameter.requires_grad_(layer in wanted)
                if layer not in wanted:
                    parameter.grad = None
                    if kept is not None and self.strategy.freezes:
                        kept.state.pop(parameter, None)
        if self._now and self.strategy.freezes:
            log.info("layers from %d on are trained from here", wanted[0])
        self._now = wanted


def hand_past(block: nn.Module, wanted: Callable[[], bool]) -> Callable[[], None]:
    """Make a block hand its gradient past itself whenever that is wanted, what it gives being the same (DropBP,
    arXiv 2402.17812); what undoes it."""

    def past(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        entering = entering_states(args, kwargs)
        if not (wanted() and torch.is_grad_enabled() and entering.requires_grad):
            return forward(*args, **kwargs)
        with torch.no_grad():
            output = forward(*args, **kwargs)
        rest = output[1:] if isinstance(output, tuple) else None
        leaving = output if rest is None else output[0]
        if not torch.is_tensor(leaving) or leaving.shape != entering.shape:
            return forward(*args, **kwargs)
        leaving = _Past.apply(entering, leaving)  # type: ignore[no-untyped-call]
        return leaving if rest is None else (leaving, *rest)

    return wrap_forward(block, past)


@contextmanager
def trained_in_the_end(model: nn.Module, strategy: Strategy) -> Iterator[None]:
    """Train only the layers that progressive freezing keeps until the end. Restores ``requires_grad`` on exit."""
    if not strategy.freezes:
        yield
        return
    blocks, layers = adapted_layers(model)
    left = strategy.trained(tuple(layers), len(blocks), 1, 1)
    resting = set(layers) - set(left[-1:] if strategy.name == CONVERGING else left)
    frozen = [parameter for layer in sorted(resting) for parameter in layers[layer]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


class _Past(torch.autograd.Function):
    """A block's output, whose gradient goes to what entered the block as if the block were not there (DropBP)."""

    @staticmethod
    def forward(ctx: Any, entering: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
        return leaving.view_as(leaving)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def adapted_layers(model: nn.Module) -> tuple[list[nn.Module], dict[int, list[nn.Parameter]]]:
    """The blocks of the one stack that carries what is trained, and of each that does its trained parameters.

    Raises:
        ModelError: several stacks carry some, or none does.
    """
    plain = plain_model(model)
    carrying: list[tuple[list[nn.Module], dict[int, list[nn.Parameter]]]] = []
    for stack in find_stacks(plain):
        blocks: Sequence[nn.Module] = stack.blocks(plain)
        trained = {i: [p for p in block.parameters() if p.requires_grad] for i, block in enumerate(blocks)}
        trained = {i: parameters for i, parameters in trained.items() if parameters}
        if trained:
            carrying.append((list(blocks), trained))
    if len(carrying) != 1:
        raise ModelError(f"{len(carrying)} stacks of blocks carry adapters; a strategy is for one")
    return carrying[0]
