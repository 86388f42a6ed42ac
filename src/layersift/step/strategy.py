"""Train the adapted layers by a strategy: progressive freezing, layers in rotation, gradients handed past some blocks.

What rests is frozen as it was trained, so that the frozen prefix reaches up to the first layer that is trained now, and
its optimizer state is freed where it is never trained again. Which layers are trained depends on the step alone: a
training that is resumed goes on as it would have.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from layersift.config.train import CONVERGING, STATIC, Strategy, parse_strategy
from layersift.errors import LayersiftError, ModelError
from layersift.models.stacks import find_stacks
from layersift.represent.hooks import entering_states, wrap_forward
from layersift.step.activation_cache import ActivationCache
from layersift.step.callback import FrozenPrefix
from layersift.step.converging import Convergence, probe_of, read_grams
from layersift.step.prefix import plain_model
from layersift.step.shared_prompt import SharedPrompt

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
