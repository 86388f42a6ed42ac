"""Train adapters on the selected layers with the transformers Trainer."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from layersift.adapt import store
from layersift.adapt.ranks import with_ranks
from layersift.adapt.targets import stack_of
from layersift.errors import LayersiftError, ModelError
from layersift.files import differences, read_json, require_new, write_json
from layersift.load.data import TaskKind
from layersift.load.encode import Encoder
from layersift.load.examples import Example, labelled_batch
from layersift.load.models import LoadedModel, ModelSource
from layersift.provenance import command, versions
from layersift.select.selection import Selection
from layersift.train.memory import peak_memory
from layersift.train.prefix import FrozenPrefix, cut_of, prefix_has_dropout
from layersift.train.prefix_cache import PrefixCache, cache_key, fits_memory
from layersift.train.response_loss import ResponseLoss
from layersift.train.run_record import SELECTION_FILE, RunRecord
from layersift.train.sampling import LengthGroupedSampler
from layersift.train.settings import TrainSettings

CHECKPOINTS_A_RUN = 4
ROWS = "example_rows"  # beside a batch's inputs: which examples these are
BATCHES_TO_START_FROM = 8  # shown to methods that start from data


class _Trainer(transformers.Trainer):  # type: ignore[misc]  # transformers is not typed
    """The Trainer with batches of like length, and where text is written with logits of the response alone."""

    response_loss: ResponseLoss | None = None
    cache: PrefixCache | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows = inputs.pop(ROWS)
        if self.cache is not None:
            self.cache.begin(rows.tolist(), inputs["attention_mask"].sum(dim=1).tolist())
        if self.response_loss is None or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():  # the Trainer wraps the model's own forward pass alone
            loss = self.response_loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Items are counted over all processes, whose gradients are then averaged.
            loss = loss * self.accelerator.num_processes
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: nobody reads the Trainer's estimate, and it walks through all parameters at every step."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example) for _, example in self.train_dataset]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)


class _AllocateRanks(transformers.TrainerCallback):  # type: ignore[misc]
    """AdaLoRA moves rank between modules after each step; PEFT leaves the call to the training loop."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        allocate = getattr(kwargs["model"].base_model, "update_and_allocate", None)
        if allocate is not None:
            allocate(state.global_step + 1)


class _Steps(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, progress: Callable[[int], None]) -> None:
        self.progress, self.done = progress, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step - self.done)
        self.done = state.global_step


class _Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds that a training took, those before an interruption included as far as its last checkpoint."""

    def __init__(self, partial: Path) -> None:
        self.place = partial / "seconds.json"
        self.before = read_json(self.place, "the seconds of a training")["seconds"] if self.place.exists() else 0.0
        self.start()

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return float(self.before + time.perf_counter() - self.started)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_json(self.place, {"seconds": self.seconds})


def partial_directory(output: Path) -> Path:
    """Where an unfinished training keeps its checkpoints."""
    return output.with_name(output.name + ".partial")


def require_trainable(output: Path, resume: bool) -> None:
    """Refuse to write over a finished run, or to lose an unfinished one.

    Raises:
        LayersiftError: ``output`` exists, or an unfinished training does and ``resume`` is off.
    """
    if resume and output.exists():
        raise LayersiftError(f"{output} is finished; there is nothing to resume")
    require_new(output, "train")
    partial = partial_directory(output)
    if partial.exists() and not resume:
        raise LayersiftError(f"{partial} holds an unfinished training; add --resume to carry on, or remove it")


def require_writer(model: Any, kind: TaskKind, name: str) -> None:
    """Refuse to train a model to write that has no head for it.

    Raises:
        ModelError: the task is to write text, and the model is an encoder.
    """
    if kind in ("instruction", "text") and not model.can_generate():
        raise ModelError(f"{name!r} ({type(model).__name__}) does not write text; it cannot be trained to")


def train(
    loaded: LoadedModel,
    source: ModelSource,
    encoder: Encoder,
    examples: Sequence[Example],
    data: dict[str, Any],
    selection: Selection,
    settings: TrainSettings,
    output: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    merge: bool = False,
    progress: Callable[[int], None] | None = None,
) -> RunRecord:
    """Train adapters on the selected layers and write the run directory in one move.

    While training, checkpoints stand in ``output.partial``; ``resume`` carries on from the last one.

    Args:
        examples: encoded by ``encoder``.
        data: what the record says of the data.
        merge: also save the base model with the adapters merged in, under ``output/merged``.
        progress: called with the number of optimizer steps done since the last call.

    Raises:
        LayersiftError: the output exists, or the unfinished training there had other settings.
        ModelError: text is to be trained with a model that writes none.
        AdapterError, SelectionError: see :func:`layersift.adapt.attach.attach`.
    """
    require_trainable(output, resume)
    require_writer(loaded.model, encoder.kind, loaded.name)
    device = loaded.model.device
    steps = settings.steps(len(examples))
    started_from = list(examples[: settings.batch_size * BATCHES_TO_START_FROM])
    config = settings.adapter(encoder.kind, steps, encoder.seq2seq)
    if config is not None:
        stack = stack_of(loaded.model, selection)
        config = with_ranks(loaded.model, stack, selection.selected_layers, config, settings.ranks)
    adapted = store.adapt(
        loaded.model,
        selection,
        config,
        with_head=encoder.kind in ("classification", "regression"),
        seed=seed,
        batches=_batches(started_from, settings.batch_size, loaded, encoder.kind) if settings.method == "eva" else (),
    )
    partial = partial_directory(output)
    plan: dict[str, Any] = {
        "settings": asdict(settings),
        "seed": seed,
        "mask": selection.mask,
        "data": data,
        "model": loaded.revision,
        "samples": len(examples),
    }
    checkpoint = _open_partial(partial, plan)
    cache = _prefix_cache(adapted, settings, loaded, examples, encoder)
    clock = _Clock(partial)
    trainer = _Trainer(
        model=adapted,
        args=_arguments(settings, encoder.kind, partial, steps, seed, device),
        train_dataset=list(enumerate(examples)),
        data_collator=lambda batch: _collated(batch, loaded.pad_id, encoder.kind),
        callbacks=[
            clock,
            _AllocateRanks(),
            FrozenPrefix(cache, settings.prefix_dropout),
            *([_Steps(progress)] if progress else []),
        ],
    )
    # AdaLoRA adds a term of its own to the model's loss.
    if encoder.kind in ("instruction", "text") and not encoder.seq2seq and settings.method != "adalora":
        trainer.response_loss = ResponseLoss()
    trainer.cache = cache
    trainer.remove_callback(transformers.PrinterCallback)
    with _names_kept(loaded.model), peak_memory(device) as peak:
        clock.start()
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = clock.seconds
    adapter_bytes = store.save(adapted, partial)
    reader = loaded.processor or loaded.tokenizer
    reader.save_pretrained(partial)
    selection.save(partial / SELECTION_FILE)
    record = RunRecord(
        source=asdict(source),
        model_revision=loaded.revision,
        encoder={
            "kind": encoder.kind,
            "classes": list(encoder.classes),
            "max_length": encoder.max_length,
            "chat_template": encoder.chat_template,
        },
        columns=data.get("columns", {}),
        data=data,
        settings=plan["settings"],
        seed=seed,
        mask=selection.mask,
        samples=len(examples),
        steps=steps,
        train_seconds=round(seconds, 3),
        train_loss=float(outcome.training_loss),
        peak_memory_bytes=peak.bytes,
        trainable_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        adapter_bytes=adapter_bytes,
        device=str(device),
        versions=versions(),
        command=command(),
    )
    record.save(partial)
    if merge:
        store.merged(adapted).save_pretrained(partial / "merged")
        reader.save_pretrained(partial / "merged")
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)
    for scrap in (partial / "plan.json", clock.place):
        scrap.unlink(missing_ok=True)
    partial.rename(output)
    return record


def _collated(batch: Sequence[tuple[int, Example]], pad_id: int, kind: TaskKind) -> dict[str, torch.Tensor]:
    """Model inputs with labels, and which examples they are of."""
    return labelled_batch([e for _, e in batch], pad_id, kind) | {ROWS: torch.tensor([row for row, _ in batch])}


def _prefix_cache(
    adapted: Any, settings: TrainSettings, loaded: LoadedModel, examples: Sequence[Example], encoder: Encoder
) -> PrefixCache | None:
    """Where what the frozen prefix gives is kept; None where there is no use in it, or it would not be exact."""
    text = bool(examples[0].input_ids) and examples[0].image is None and not encoder.seq2seq
    blocks = cut_of(adapted) if text and settings.prefix_cache != "off" else 0
    if not blocks or (settings.prefix_dropout and prefix_has_dropout(adapted)):
        return None
    first = next(p for p in loaded.model.parameters() if p.is_floating_point())
    if settings.prefix_cache != "auto":
        return PrefixCache(Path(settings.prefix_cache) / cache_key(loaded.revision, blocks, first.dtype, examples))
    width = int(loaded.model.config.get_text_config().hidden_size)
    return PrefixCache() if settings.epochs > 1 and fits_memory(examples, width, first.dtype) else None


def _batches(
    examples: Sequence[Example], size: int, loaded: LoadedModel, kind: TaskKind
) -> list[dict[str, torch.Tensor]]:
    """Model inputs with labels, on the model's device, in order."""
    cut = [examples[i : i + size] for i in range(0, len(examples), size)]
    batches = (labelled_batch(members, loaded.pad_id, kind) for members in cut)
    return [{name: value.to(loaded.model.device) for name, value in batch.items()} for batch in batches]


def _open_partial(partial: Path, plan: dict[str, Any]) -> Path | None:
    """Start an unfinished training's directory, or find the last checkpoint in it."""
    plan = json.loads(json.dumps(plan))
    if not partial.exists():
        write_json(partial / "plan.json", plan)
        return None
    before = read_json(partial / "plan.json", "the plan of an unfinished training")
    if changed := differences(before, plan):
        raise LayersiftError(f"{partial}: begun with other {', '.join(changed)}; resume with the same, or remove it")
    return _last_checkpoint(partial / "checkpoints")


def _last_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint that was written to its end; later ones, cut short by a kill, are removed."""
    for checkpoint in sorted(directory.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        with suppress(LayersiftError):
            read_json(checkpoint / "trainer_state.json", "a checkpoint's state")  # what the Trainer writes last
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _arguments(
    settings: TrainSettings, kind: TaskKind, partial: Path, steps: int, seed: int, device: torch.device
) -> transformers.TrainingArguments:
    arguments = transformers.TrainingArguments(
        output_dir=str(partial / "checkpoints"),
        num_train_epochs=settings.epochs,
        learning_rate=settings.rate(kind),
        per_device_train_batch_size=settings.batch_size,
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
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        **_kernels(device),
        **({"gradient_checkpointing": True} if settings.gradient_checkpointing else {}),
    )
    if arguments.n_gpu > 1:  # the Trainer would copy the model to all of them (DataParallel)
        arguments._n_gpu = 1
    return arguments


@contextmanager
def _names_kept(model: Any) -> Iterator[None]:
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
