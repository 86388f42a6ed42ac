"""The frozen prefix while somebody's Trainer trains, and what such a Trainer does not see."""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from layersift.errors import LayersiftError, ModelError, TrainingError, listed
from layersift.models.stacks import find_stacks
from layersift.represent.hooks import tensors_in
from layersift.represent.read import free_memory
from layersift.step.activation_cache import MEMORY_SHARE, ActivationCache, batch_rows, require_cache_place
from layersift.step.prefix import frozen_prefix, is_trained, plain_model, why_not_kept
from layersift.step.shared_prompt import SharedPrompt

log = logging.getLogger(__name__)


class Running:
    """Whether a training goes on, by what its Trainer tells callbacks: an exception or Ctrl-C ends it without a word.

    Between two steps nothing is trained. Within one, forward passes come one after the other, and a backward pass is
    followed by the Trainer's next event before the model is called again.

    Args:
        model: what is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._in_step = self._in_pass = self._went_back = False

    def event(self, *, in_step: bool) -> None:
        """The Trainer tells of something, and trains the model from here on or does not."""
        self._in_step, self._in_pass, self._went_back = in_step, False, False

    def begin_pass(self) -> None:
        """A forward pass begins."""
        self._in_pass = True

    def end_pass(self, output: Any) -> None:
        """It has come to its end; a backward pass from what it gave may follow."""
        self._in_pass = False
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(self._go_back)  # type: ignore[no-untyped-call]

    def has_ended(self) -> bool:
        """Whether the forward pass that is about to begin is none of the training's."""
        if not self._in_step:
            return torch.is_grad_enabled() or self._model.training
        return self._in_pass or self._went_back

    def _go_back(self, gradient: torch.Tensor) -> None:
        self._went_back = True


class Reached:
    """Which trained blocks the backward passes of a training's first step give gradients.

    Checkpointing, a wrapper or a detached tensor can cut a block off from the loss: nothing fails, and the rest trains.

    Args:
        model: what is trained, whose forward passes are watched.
        blocks: by what they are called in a message; those that hold what is trained at this step.
    """

    def __init__(self, model: nn.Module, blocks: dict[str, nn.Module]) -> None:
        self._blocks = blocks
        self._ran: set[str] = set()
        self._reached: set[str] = set()
        self._wanted = False  # whether the forward pass that is running is for a backward pass
        handles = [model.register_forward_pre_hook(self._begin)]
        for name, block in blocks.items():
            trained = [p for p in block.parameters() if p.requires_grad and p.is_leaf and not hasattr(p, "ds_id")]
            if trained:  # shards of parameters tell nothing of their own
                handles.append(block.register_forward_pre_hook(self._noting(name)))
                handles += [_on_gradient(parameter, self._reaching(name)) for parameter in trained]
        self._handles: list[Any] = handles

    def _begin(self, *given: Any) -> None:
        self._wanted = torch.is_grad_enabled()

    def _noting(self, name: str) -> Callable[..., None]:
        def note(*given: Any) -> None:
            if self._wanted:
                self._ran.add(name)

        return note

    def _reaching(self, name: str) -> Callable[..., None]:
        return lambda parameter: self._reached.add(name)

    def stop(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def require(self) -> None:
        """Raise TrainingError if a block ran forward, is trained still, and no backward pass has reached it."""
        missed = [name for name in sorted(self._ran - self._reached) if is_trained(self._blocks[name])]
        if missed:
            raise TrainingError(
                f"no gradient reaches what is trained in {listed(missed, 120)}: nothing there would learn. Where "
                "gradient checkpointing is on, gradient_checkpointing_kwargs={'use_reentrant': False} is the usual cure"
            )


def _on_gradient(parameter: Any, call: Callable[[Any], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(call)


class FrozenPrefix(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """:func:`frozen_prefix` while a Trainer trains; for transformers' Trainer, TRL's SFTTrainer and their kin.

    ``SFTTrainer(..., callbacks=[FrozenPrefix()])``. If the first step leaves a block that is trained without a
    gradient, it ends the training with a :class:`~layersift.errors.TrainingError`. A training that an exception ends
    leaves nothing behind: the model's next forward pass puts it back as it was.

    With a ``cache`` the outputs of the prefix are kept by what each row holds, and served from the second epoch on. The
    prefix must draw no dropout then; why nothing can be kept is said once, in the log. The first batch that could
    be served is computed, too: what differs by more than rounding is not served at all.

    Args:
        dropout: whether the prefix draws dropout while training, as the whole model does.
        cache: ``"off"``; ``"auto"``, in memory, at most a quarter of what is free; or a directory, at most half of what
            is free on its disk, of which nothing is left after the training.
        cache_bytes: the most that is kept, in place of that share; rows beyond it are computed in every epoch.

    Raises:
        LayersiftError: ``cache`` is the path of something else than a directory, or ``cache_bytes`` is not above zero
            or has no cache.

    Examples:
        >>> import json
        >>> from layersift import FrozenPrefix, Selection
        >>> from peft import LoraConfig
        >>> from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
        >>> model = AutoModelForSequenceClassification.from_pretrained("model")
        >>> tokenizer = AutoTokenizer.from_pretrained("model")
        >>> rows = [json.loads(line) for line in open("rows.jsonl")]
        >>> dataset = [{**tokenizer(row["text"]), "label": row["label"]} for row in rows]
        >>> adapted = Selection.of_layers(model, "last:2").attach(model, LoraConfig(task_type="SEQ_CLS"))
        >>> args = TrainingArguments("trained", report_to="none", disable_tqdm=True)
        >>> callback = FrozenPrefix(dropout=False, cache="auto")
        >>> trainer = Trainer(adapted, args, train_dataset=dataset, processing_class=tokenizer, callbacks=[callback])
        >>> result = trainer.train()
        {'train_runtime': ..., 'epoch': '3'}
        >>> callback.blocks, callback.served
        (2, 5)
    """

    def __init__(self, dropout: bool = True, cache: str = "off", cache_bytes: int | None = None) -> None:
        require_cache_place(cache)
        if cache_bytes is not None and (cache == "off" or cache_bytes <= 0):
            raise LayersiftError(f"cache_bytes={cache_bytes}: expected a number above 0, and a cache that it bounds")
        self.cache_bytes = cache_bytes
        self.dropout, self.cache = dropout, cache
        self.blocks = 0  # that run without a graph
        self._cache: ActivationCache | None = None
        self._prompt: SharedPrompt | None = None
        self.served = 0  # batches for which the prefix did not run, in a training that has ended
        self._active: Any = None
        self._reached: Reached | None = None
        self._running: Running | None = None
        self._hooks: list[Any] = []  # that follow the forward passes

    @classmethod
    def with_cache(cls, cache: ActivationCache | None, dropout: bool) -> FrozenPrefix:
        """With a cache, which works only where the training loop tells it which examples each batch is of."""
        callback = cls(dropout)
        callback._cache = cache
        return callback

    @property
    def _by_content(self) -> bool:
        """Whether the cache knows rows by what they hold; else the training loop says which examples a batch is of."""
        return self.cache != "off"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checkpointing is on by now, where it is wanted."""
        self._restore()  # after a training that an exception has ended
        self._begin(args, state, **kwargs)
        plain = plain_model(kwargs["model"])
        self._reached = Reached(plain, _trained_blocks(plain))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The forward passes from here on are the training's."""
        if self._running is None:  # it goes on after all
            self._begin(args, state, **kwargs)
        self._change(args, state, **kwargs)
        self._tell(in_step=True)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A backward pass of several is over."""
        self._tell(in_step=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing is trained until the next step."""
        self._tell(in_step=False)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once, after the backward passes of the first step: what is trained has gradients.

        Raises:
            TrainingError: see above.
        """
        self._tell(in_step=False)
        if self._reached is not None:
            self._reached.stop()
            self._reached.require()
            self._reached = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self._restore()

    def _begin(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Change the model as the training wants it, and follow its forward passes."""
        self._prepare(args, state, **kwargs)
        if self._by_content and self._cache is None:
            self._cache = self._own_cache(kwargs["model"], state)
        self._enter(kwargs["model"])
        self._follow(plain_model(kwargs["model"]))

    def _tell(self, *, in_step: bool) -> None:
        if self._running is not None:
            self._running.event(in_step=in_step)

    def _own_cache(self, model: nn.Module, state: Any) -> ActivationCache | None:
        """Where outputs of the prefix are kept; None where there is no use in it, or it would not be exact."""
        if state.num_train_epochs <= 1:
            return None  # no row comes twice
        with self._as_at_the_end(model):
            why = why_not_kept(model, self.dropout)
        if why is not None:
            log.warning("what the frozen blocks give is not kept: %s", why)
            return None
        if self.cache == "auto":
            limit = MEMORY_SHARE * free_memory() if self.cache_bytes is None else self.cache_bytes
            return ActivationCache(limit=limit, sure=False)
        place = Path(self.cache)
        place.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix="layersift-prefix-", dir=place))
        return ActivationCache(own, limit=self.cache_bytes, sure=False)

    def _as_at_the_end(self, model: nn.Module) -> AbstractContextManager[None]:
        """While active, those layers alone are trained that are trained at the end."""
        return nullcontext()

    def _say_rows(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Tell the cache which rows the forward pass is of that begins."""
        if self._cache is None or not self._by_content:
            return
        rows = None
        if model.training:  # with a graph or, as a reference model's passes, without
            rows = batch_rows(inspect.signature(model.forward).bind_partial(*args).arguments | kwargs)
        if rows is None:
            self._cache.stand_aside()
        else:
            self._cache.begin_spans([row.key for row in rows], [row[1:] for row in rows])

    def _prepare(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Let the layers require gradients that are trained from here on."""

    def _change(self, args: Any, state: Any, **kwargs: Any) -> None:
        """Freeze or free what the step that begins asks for."""

    def _restore(self) -> None:
        """Undo all that was done to the model."""
        self._leave()
        if self._by_content and self._cache is not None:
            self.served, cache, self._cache = self._cache.served, self._cache, None
            if cache.directory is not None:
                shutil.rmtree(cache.directory, ignore_errors=True)
        for handle in self._hooks:
            handle.remove()
        self._running, self._hooks = None, []
        if self._reached is not None:
            self._reached.stop()
            self._reached = None

    def _rests(self) -> bool:
        """Whether something that the model came with as trained is not trained now."""
        return False

    def _follow(self, model: nn.Module) -> None:
        """See at each forward pass whether the training still runs."""
        running = self._running = Running(model)

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                return
            if not running.has_ended():
                running.begin_pass()
                self._say_rows(module, args, kwargs)
                return
            resting = self._rests()
            self._restore()
            said = "an earlier training ended in an exception; the model has been put back as it was before it"
            if resting and torch.is_grad_enabled() and model.training:
                raise TrainingError(f"{said}, and layers that rested are trained again: make the Trainer anew")
            log.warning(said)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():
                running.end_pass(output)

        self._hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]

    def _enter(self, model: nn.Module) -> None:
        active = frozen_prefix(model, self._cache, self.dropout, self._prompt)
        try:
            self.blocks = active.__enter__()
        except ModelError as error:  # a model without blocks trains as it always does
            log.warning("the frozen prefix is left as it is: %s", error)
            return
        self._active = active

    def _leave(self) -> None:
        if self._active is not None:
            self._active.__exit__(None, None, None)
            self._active = None


def _trained_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that hold something trained, by name; none where the model has no blocks."""
    plain = plain_model(model)
    try:
        stacks = find_stacks(plain)
    except ModelError:
        return {}
    blocks = {f"{s.path}.{i}": block for s in stacks for i, block in enumerate(s.blocks(plain))}
    return {name: block for name, block in blocks.items() if is_trained(block)}
