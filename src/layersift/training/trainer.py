"""transformers' Trainer as layersift runs it: its batches, its loss, what is told and done while it trains;
and the optimizers that it does not make: LoRA+, and a learning rate by layer."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader, Sampler

from layersift.compat import local_loader, train_on_one_gpu, unsaved_weights
from layersift.config.recipe import TaskKind
from layersift.config.train import TrainSettings
from layersift.data.examples import Example, labelled_batch
from layersift.errors import LayersiftError, TrainingError
from layersift.models.stacks import BlockStack
from layersift.processes import rank_and_count, several, share_of_batch
from layersift.step.activation_cache import ActivationCache
from layersift.step.losses import LabelLoss, ResponseLoss
from layersift.training.output import RunOutput
from layersift.training.watch import ENTRIES

CHECKPOINTS_A_RUN = 4
OF_CONNECTIONS = ("peer", "Connection", "connection", "NCCL", "gloo", "Socket")  # said by torch.distributed's errors
ROWS = "example_rows"  # beside a batch's inputs: which examples these are
NOTHING = -1  # in place of one: the example is there so that a process has something to pass, and does not count


class Batches:
    """Make model inputs of numbered examples, with labels and which examples they are of; count what is padding."""

    def __init__(self, pad_id: int, kind: TaskKind) -> None:
        self.pad_id, self.kind = pad_id, kind
        self.read = self.places = 0  # tokens, and places for some, padding included

    def __call__(self, batch: Sequence[tuple[int, Example]]) -> dict[str, torch.Tensor]:
        inputs = labelled_batch([example for _, example in batch], self.pad_id, self.kind)
        if (mask := inputs.get("attention_mask")) is not None:
            self.read, self.places = self.read + int(mask.sum()), self.places + mask.numel()
        return inputs | {ROWS: torch.tensor([row for row, _ in batch])}

    @property
    def padding(self) -> float | None:
        """The fraction of places that were padding, since this process started; None of images alone."""
        return round(1 - self.read / self.places, 4) if self.places else None


class Trainer(transformers.Trainer):  # type: ignore[misc]  # transformers is not typed
    """The Trainer with batches of like length and a loss that counts alike however many batches are accumulated.

    Args:
        own_loss: None for the model's own, the mean over each batch.
        cache: is told which examples each batch is of.
    """

    def __init__(
        self, *, own_loss: ResponseLoss | LabelLoss | None, cache: ActivationCache | None, **given: Any
    ) -> None:
        super().__init__(**given)
        self.own_loss, self.cache = own_loss, cache
        # Whether the loss is divided by the number of items already, or has yet to be by the number of batches.
        self.model_accepts_loss_kwargs = own_loss is not None
        self.step_loss: torch.Tensor | float = 0.0  # since the last optimizer step
        self.losses = LossTotal()
        self.add_callback(self.losses)
        self.add_callback(_StopWhereNotFinite(self))

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """The batches of one optimizer step, and what all of them hold that a loss is taken on.

        Counted here: transformers counts tokens of a causal model one way or another from version to version.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.own_loss is None:
            return batches, None
        counted = [batch for batch in batches if not is_nothing(batch[ROWS])]
        items = torch.tensor(sum(self.own_loss.items(batch["labels"]) for batch in counted), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return batches, items.clamp_min(1)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks weights, of which transformers only warns: older versions name some layers'
        otherwise on saving, and the training would go on without them.

        Raises:
            TrainingError: see above.
        """
        if lacking := sorted(set(load_result.missing_keys) - set(unsaved_weights(self.model))):
            raise TrainingError(
                f"the checkpoint lacks {len(lacking)} of the model's weights, {lacking[0]} for one: it was written by "
                "other versions, or damaged; begin the training anew"
            )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = self.step_loss + loss.detach()
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows = inputs.pop(ROWS)
        nothing = is_nothing(rows)
        if self.cache is not None and nothing:
            self.cache.stand_aside()
        elif self.cache is not None:
            self.cache.begin(rows.tolist(), inputs["attention_mask"].sum(dim=1).tolist())
        if self.own_loss is None or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():  # the Trainer wraps the model's own forward pass alone
            loss = self.own_loss(model, inputs, num_items_in_batch)
        if nothing:
            loss = loss * 0
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Items are counted over all processes, whose gradients are then averaged.
            loss = loss * self.accelerator.num_processes
        return loss

    def log_beside(self, values: dict[str, float]) -> None:
        """Log something of our own; the Trainer would take it for the entry that is due."""
        due = self.control.should_log
        self.log(values)
        self.control.should_log = due

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: nobody reads the Trainer's estimate, and it walks through all parameters at every step."""
        return 0

    def get_train_dataloader(self) -> Any:
        """Batches in the sampler's order; among several processes, which Accelerate would deal out otherwise, each
        reads its share of every batch."""
        if not several():
            return super().get_train_dataloader()
        share = OwnShare(self._get_train_sampler(), len(self.train_dataset) - 1, by_row=self.cache is not None)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=share,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return local_loader(loader, self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example) for row, example in self.train_dataset if row != NOTHING]
        return LengthGroupedSampler(
            lengths, self.args.per_device_train_batch_size * self.args.world_size, self.args.seed
        )


class LossTotal(transformers.TrainerCallback, transformers.trainer_callback.ExportableState):  # type: ignore[misc]
    """The sum of the losses of all steps; a checkpoint holds it, so that it goes on where a training does."""

    def __init__(self, total: float = 0.0) -> None:
        self.total = total

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"total": self.total}, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.total = float(state.stateful_callbacks[type(self).__name__]["args"]["total"])


class _StopWhereNotFinite(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends a training at the first loss or gradient that is not finite, before the weights follow it."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        summed, self.trainer.step_loss = torch.as_tensor(self.trainer.step_loss), 0.0
        loss = float(self.trainer.accelerator.reduce(summed, "mean") if several() else summed)
        self.trainer.losses.total += loss
        what = None if math.isfinite(loss) else f"its loss is {loss}"
        # With fp16 steps whose scaled gradients overflow are left out, and the scale is lowered.
        if what is None and self.trainer.accelerator.scaler is None:
            # Asked of a GPU once a step, not once a parameter.
            finite_gradients = [
                torch.isfinite(p.grad).all() for p in kwargs["model"].parameters() if p.grad is not None
            ]
            if finite_gradients and not bool(
                torch.stack([finite.to(finite_gradients[0].device) for finite in finite_gradients]).all()
            ):
                what = "its gradient is not finite"
        if what is not None:
            rate = kwargs["lr_scheduler"].get_last_lr()[0]
            raise TrainingError(
                f"training diverged at step {state.global_step + 1} of {state.max_steps}: {what}, at a learning rate "
                f"of {rate:g}; try a lower learning rate, a warm-up, or another precision"
            )


class AllocateRanks(transformers.TrainerCallback):  # type: ignore[misc]
    """AdaLoRA moves rank between modules after each step; PEFT leaves the call to the training loop."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        allocate = getattr(kwargs["model"].base_model, "update_and_allocate", None)
        if allocate is not None:
            allocate(state.global_step + 1)


class SaveOnInterrupt(transformers.TrainerCallback):  # type: ignore[misc]
    """Ctrl-C ends a training behind the step that it is at, with a checkpoint to go on from; a second one at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While active, Ctrl-C is heeded so.

        Raises:
            KeyboardInterrupt: at the end, where it came.
        """
        if threading.current_thread() is not threading.main_thread():  # which alone may listen
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, *signal_and_frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer saves and stops."""
        if self.asked:
            control.should_save = control.should_training_stop = True


class Steps(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells of optimizer steps."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.progress, self.done = progress, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step - self.done)
        self.done = state.global_step


def training_arguments(
    settings: TrainSettings,
    output: RunOutput,
    steps: int,
    seed: int,
    device: torch.device,
) -> transformers.TrainingArguments:
    """The settings, defaults filled in, as transformers takes them. Processes share each batch.

    Raises:
        LayersiftError: a batch cannot be shared evenly.
    """
    share = share_of_batch(settings.batch_size, rank_and_count()[1])
    arguments = transformers.TrainingArguments(
        output_dir=str(output.checkpoints),
        num_train_epochs=settings.epochs,
        learning_rate=settings.rate,
        per_device_train_batch_size=share,
        gradient_accumulation_steps=settings.gradient_accumulation,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / CHECKPOINTS_A_RUN)),
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=max(1, steps // ENTRIES),
        logging_nan_inf_filter=False,  # a mean that leaves out what is not finite is not the training's
        report_to="none",  # trackers are callbacks of ours
        disable_tqdm=True,
        remove_unused_columns=False,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        **_kernels(device),
        **({"gradient_checkpointing": True} if settings.gradient_checkpointing else {}),
    )
    train_on_one_gpu(arguments)
    return arguments


@contextmanager
def names_kept(model: Any) -> Iterator[None]:
    """Put back what Liger replaces in the module of the model's class, which later models are made of."""
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        yield
    finally:
        names.update(before)


def _kernels(device: torch.device) -> dict[str, Any]:
    """Liger's kernels, on a GPU where they are installed; the loss is :class:`ResponseLoss`'s business."""
    if device.type != "cuda" or not transformers.utils.is_liger_kernel_available():
        return {}
    losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    return {"use_liger_kernel": True, "liger_kernel_config": losses}


BATCHES_IN_A_POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Yields every index once an epoch. Random pools of some batches are sorted by length, their batches shuffled.

    The order depends on the lengths, the seed and the epoch alone, so a resumed training goes on in the same order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.batch_size * BATCHES_IN_A_POOL
        batches = []
        for start in range(0, len(order), pool):
            members = sorted(order[start : start + pool], key=lambda i: -self.lengths[i])
            batches += [members[i : i + self.batch_size] for i in range(0, len(members), self.batch_size)]
        # A short batch must stay the last one: the loader cuts the stream into batches again.
        full = [b for b in batches if len(b) == self.batch_size]
        short = [i for b in batches if len(b) < self.batch_size for i in b]
        for at in torch.randperm(len(full), generator=generator).tolist():
            yield from full[at]
        yield from short


class OwnShare(Sampler[list[int]]):
    """This process's part of each of a sampler's batches; where it has none of one, an example that does not count.

    Args:
        sampler: yields indices, batch after batch.
        nothing: the index of the example that does not count.
        by_row: whether an example is of the same process in each epoch, which may have kept something of it; the parts
            are of other sizes then. Else they are as equal as can be.
    """

    def __init__(self, sampler: LengthGroupedSampler, nothing: int, by_row: bool) -> None:
        self.sampler, self.nothing, self.by_row = sampler, nothing, by_row

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.sampler.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rank, processes = rank_and_count()
        indices, size = list(self.sampler), self.sampler.batch_size
        for batch in (indices[start : start + size] for start in range(0, len(indices), size)):
            own = [i for i in batch if i % processes == rank] if self.by_row else batch[rank::processes]
            yield own or [self.nothing]


def is_nothing(rows: torch.Tensor) -> bool:
    """Whether a batch is of no example. Of one process none is, and no GPU is asked for it."""
    return several() and int(rows[0]) == NOTHING


@contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """While active, the end of another process is told as that.

    Raises:
        LayersiftError: see above.
    """
    try:
        yield
    except RuntimeError as error:
        if not several() or not any(word in str(error) for word in OF_CONNECTIONS):
            raise
        raise LayersiftError(
            "another of the processes has ended, and the training with it; the same command (of train with --resume) "
            "goes on from the last checkpoint, in as many processes as you like"
        ) from error


def own_optimizer(trainer: Any, settings: TrainSettings, stack: BlockStack) -> Any:
    """The optimizer that the settings ask for; None where the Trainer makes it itself.

    Args:
        stack: the blocks of the model without adapters, whose paths are part of the adapted one's.

    Source: LoRA+ by Hayou, Ghosh and Yu 2024 (2402.12354), as PEFT has it.
    """
    if settings.loraplus_ratio is None and settings.layer_decay is None:
        return None
    cls, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    if settings.loraplus_ratio is None:
        optimizer = trainer.create_optimizer()
    else:
        from peft.optimizers import create_loraplus_optimizer

        optimizer = create_loraplus_optimizer(
            trainer.model,
            cls,
            loraplus_lr_ratio=settings.loraplus_ratio,
            loraplus_weight_decay=settings.weight_decay,
            **options,
        )
    if settings.layer_decay is None:
        return optimizer
    groups = _by_layer(optimizer.param_groups, trainer.model, settings.layer_decay, stack)
    return cls(groups, **options)


def _by_layer(groups: list[dict[str, Any]], model: Any, decay: float, stack: BlockStack) -> list[dict[str, Any]]:
    """The groups, each split by layer: the last layer has a group's rate, and so has what lies in no layer.

    The highest rate comes first, since the Trainer logs the first group's.
    """
    blocks = {f".{stack.block_path(layer)}.": layer for layer in range(stack.num_layers)}
    depths = {
        id(parameter): next((stack.num_layers - 1 - layer for block, layer in blocks.items() if block in f".{name}"), 0)
        for name, parameter in model.named_parameters()
    }
    split = []
    for group in groups:
        for depth in sorted({depths[id(parameter)] for parameter in group["params"]}):
            members = [parameter for parameter in group["params"] if depths[id(parameter)] == depth]
            split.append({**group, "params": members, "lr": group["lr"] * decay**depth})
    return sorted(split, key=lambda group: -float(group["lr"]))
