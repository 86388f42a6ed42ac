"""Train adapters on the selected layers, and write the run directory in one move."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from layersift.adapt import store
from layersift.adapt.methods import adapter_config
from layersift.config.defaults import Trained, fill_epochs, hidden_size, with_defaults
from layersift.config.recipe import Columns
from layersift.config.train import AUTO, FULL, STATIC, TrainSettings, parse_strategy
from layersift.data.chat.conversation import Conversation
from layersift.data.chat.encode_chat import special_ids
from layersift.data.chat.template import Template, render
from layersift.data.chat.turns import PROBE
from layersift.data.encode import Encoder, language_token
from layersift.data.examples import Example, batches_of, digest_of, require_embedded, wrap_model_errors
from layersift.data.table import names_of_outputs
from layersift.errors import AdapterError, DataError, TrainingError
from layersift.files import telling_a_full_disk, write_text
from layersift.models.load import UNKNOWN, LoadedModel, device_of, is_quantized, require_writer
from layersift.models.source import first_not_finite, is_revision
from layersift.processes import by_main_process, place_of, rank_and_count, several
from layersift.progress import warn_once
from layersift.provenance import command, versions
from layersift.records.card import base_id, run_card
from layersift.records.reading import DataRecord
from layersift.records.runs import READ_FILE, SELECTION_FILE, EncoderRecord, RateSearch, RunRecord
from layersift.records.selection import Selection
from layersift.step.activation_cache import require_cache_place
from layersift.step.counters import peak_memory
from layersift.step.losses import own_loss
from layersift.step.strategy import TrainingStrategy, adapted_layers
from layersift.training.kept_states import open_activation_cache, shared_prompt
from layersift.training.output import RATE_SEARCH, RunOutput
from layersift.training.sharding import require_shardable, shard_blocks
from layersift.training.trainer import (
    NOTHING,
    AllocateRanks,
    Batches,
    SaveOnInterrupt,
    Steps,
    Trainer,
    names_kept,
    noticing_lost_processes,
    own_optimizer,
    training_arguments,
)
from layersift.training.watch import (
    Clock,
    LogImportances,
    Looks,
    LossLog,
    Training,
    Watch,
    logs_beside,
    notices_of,
    require_trackers,
    tracker_callbacks,
)

log = logging.getLogger(__name__)

# Which of the base's settings are kept: what tokens are called, and what is of no consequence for a greedy answer.
KEPT = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"})
HARMLESS = frozenset(
    {*KEPT, "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    | {"max_length", "max_new_tokens", "use_cache", "cache_implementation", "transformers_version"}
    | {"_from_model_config", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"}
)


def closing_texts(encoder: Encoder) -> list[str]:
    """What the chat template writes behind an answer, in the last turn and in those before it, each stripped.

    Nothing where there is no template, or it does not write a plain conversation.
    """
    images = encoder.processor is not None
    own = encoder.processor.chat_template if images else None
    given = encoder.chat_template or (own if isinstance(own, str) else None)
    template = None if encoder.seq2seq else Template.of(given, encoder.tokenizer)
    if template is None:
        return []
    turns = [{**m, "content": [{"type": "text", "text": m["content"]}]} if images else m for m in PROBE]
    texts = []
    for messages in (tuple(turns), (*turns, *turns)):
        trained = tuple(message["role"] == "assistant" for message in messages)
        with suppress(DataError):
            rendered = render(Conversation(messages, trained), template, "a conversation to try the template with")
            for start, end in rendered.responses:
                texts.append(rendered.text[start:end].rpartition(PROBE[1]["content"])[2].strip())
    return [text for text in dict.fromkeys(texts) if text]


def find_stops(model: Any, encoder: Encoder) -> tuple[list[int], list[str]]:
    """Tokens that end an answer, and texts of several tokens that do.

    The tokenizer's end-of-text token, those of the model, and what the chat template closes a trained turn with.
    """
    tokenizer = encoder.tokenizer
    named = getattr(model.generation_config, "eos_token_id", None)
    tokens = {*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id} - {None}
    texts = []
    special = special_ids(tokenizer)
    for text in closing_texts(encoder):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids[-1] in special or len(ids) == 1:
            tokens.add(ids[-1])
        else:
            texts.append(text)
    return sorted(tokens), texts


def find_endings(model: Any, encoder: Encoder) -> tuple[str, ...]:
    """What ends an answer, as text; nothing where none are written."""
    if encoder.kind not in ("instruction", "text"):
        return ()
    tokens, texts = find_stops(model, encoder)
    return (*map(str, encoder.tokenizer.convert_ids_to_tokens(tokens)), *texts)


def greedy_config(model: Any, encoder: Encoder, pad_id: int) -> Any:
    """A generation config of our own for a model: greedy, ended by :func:`stops_of`; all else is transformers' default.

    What the base's own would have changed is told once.
    """
    own = model.generation_config
    reset = {
        name: value
        for name, value in own.to_diff_dict().items()
        if name not in HARMLESS and value not in (None, False, [], {}) and not name.startswith("_")
    }
    if reset:
        named = ", ".join(f"{name} {value}" for name, value in reset.items())
        warn_once(log, f"answers are greedy: what the base's generation_config.json sets is not used ({named})")
    tokens, _ = find_stops(model, encoder)
    kept = {name: getattr(own, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
    if encoder.languages is not None:
        token = language_token(encoder.tokenizer, encoder.languages[1])
        begins = encoder.tokenizer(text_target="a")["input_ids"][0] == token  # mBART's first checkpoints start from it
        kept["forced_bos_token_id" if begins else "decoder_start_token_id"] = token
    return transformers.GenerationConfig(
        do_sample=False,
        eos_token_id=tokens or None,
        pad_token_id=pad_id,
        **{n: v for n, v in kept.items() if v is not None},
    )


def reader_as_trained(loaded: LoadedModel, encoder: Encoder) -> Any:
    """Tokenizer or processor of a model, writing conversations as training read them; the model's own is left alone."""
    reader = loaded.processor or loaded.tokenizer
    if encoder.chat_template is None:
        return reader
    template = Template.of(encoder.chat_template, loaded.tokenizer)
    reader = copy.copy(reader)
    reader.chat_template = encoder.chat_template if template is None else template.text
    return reader


BATCHES_TO_START_FROM = 8  # shown to methods that start from data


@dataclass(frozen=True)
class TrainingData:
    """The examples to train on, how they were encoded, and what is recorded of them."""

    encoder: Encoder
    examples: Sequence[Example]
    record: DataRecord
    searched: RateSearch | None = None  # what chose the learning rate on these rows
    read: Collection[str] = ()  # digests of what is read of the rows; see :mod:`layersift.data.split`


def train(
    loaded: LoadedModel,
    data: TrainingData,
    selection: Selection,
    settings: TrainSettings,
    output: RunOutput,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> RunRecord:
    """Train adapters on the selected layers and write the run directory in one move.

    While training, checkpoints stand in ``output.partial``; ``output.resume`` carries on from the last one.

    Args:
        progress: called with the number of optimizer steps done since the last call.
        watch: what is looked at, logged and told while it trains; what is found stands in the run directory.

    Raises:
        LayersiftError: the output exists, or the unfinished training there had other settings.
        ModelError: text is to be trained with a model that writes none.
        TrainingError: the loss, the gradients or the weights are not finite; nothing is kept.
        AdapterError, SelectionError: see :meth:`layersift.records.selection.Selection.attach`.
    """
    encoder, watch = data.encoder, watch or Watch()
    _refuse(loaded, data, selection, settings, output, watch)
    if output.sharded:
        require_shardable(loaded, watch, settings.method, output.merge)
    settings, adapted = _prepare(loaded, data, selection, settings, seed)
    if output.sharded:  # the model is on a CPU so far
        shard_blocks(adapted, selection.stack(loaded.model), device_of(loaded.source))
    with output.begun(_identity(loaded, data, selection, settings, seed, watch)) as checkpoint:
        prompt = shared_prompt(adapted, settings, data.examples, seq2seq=encoder.seq2seq)
        cache = open_activation_cache(adapted, settings, loaded, data.examples, seq2seq=encoder.seq2seq, prompt=prompt)
        training = Training(output.partial, watch, Clock(output.partial), cache)
        by_strategy = TrainingStrategy.with_cache(cache, settings.prefix_dropout, settings.strategy, prompt)
        looks, interrupt = Looks(training), SaveOnInterrupt()
        loss = own_loss(adapted, encoder.kind, settings, seq2seq=encoder.seq2seq)
        if loss is None and several():
            raise AdapterError("a router's loss and AdaLoRA's are means over each process's rows; train in one process")
        batches = Batches(loaded.pad_id, encoder.kind)
        with logs_beside(output.partial):
            trainer = Trainer(
                own_loss=loss,
                cache=cache,
                model=adapted,
                args=training_arguments(
                    settings, output, settings.steps(len(data.examples)), seed, loaded.model.device
                ),
                train_dataset=_numbered(data.examples),
                data_collator=batches,
                callbacks=[
                    *tracker_callbacks(watch.report_to),
                    training.clock,
                    AllocateRanks(),
                    by_strategy,
                    LossLog(training),
                    looks,
                    *([Steps(progress)] if progress else []),
                    *([LogImportances(training, selection.importance)] if watch.report_to else []),
                    interrupt,
                ],
            )
        if several():  # each draws dropout of its own
            torch.manual_seed(seed + 1_000_003 * rank_and_count()[0])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.optimizer = own_optimizer(trainer, settings, selection.stack(loaded.model))
        training.log = trainer.log_beside
        try:
            with (
                telling_a_full_disk(output.partial),
                names_kept(loaded.model),
                wrap_model_errors(adapted, data.examples),
                interrupt.listening(),
                noticing_lost_processes(),
                peak_memory(loaded.model.device) as peak,
            ):
                training.clock.start()
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            by_main_process(lambda: _settle(adapted, looks))
        except TrainingError:
            shutil.rmtree(output.partial, ignore_errors=True)  # going on from there would end there
            raise
        seconds, place = training.clock.seconds, place_of(str(loaded.model.device))

        def finish() -> RunRecord:
            with telling_a_full_disk(output.partial):
                record = RunRecord(
                    source=loaded.source,
                    model_revision=loaded.revision,
                    encoder=EncoderRecord(
                        encoder.kind, encoder.classes, encoder.max_length, encoder.chat_template, encoder.languages
                    ),
                    columns=Columns(**data.record.columns),
                    data=data.record,
                    settings=settings,
                    seed=seed,
                    mask=selection.mask,
                    samples=len(data.examples),
                    steps=int(trainer.state.global_step),
                    train_seconds=round(seconds, 3),
                    train_loss=trainer.losses.total / max(1, trainer.state.global_step),
                    peak_memory_bytes=peak.bytes,
                    trainable_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
                    adapter_bytes=store.save(adapted, output.partial),
                    trained_digest=store.digest(settings.method, output.partial),
                    device=place,
                    versions=versions(),
                    command=command(),
                    activation_cache_stopped=cache.stopped if cache else None,
                    shared_prompt_tokens=prompt.tokens if prompt else 0,
                    padding=None if several() else batches.padding,
                    strategy_followed=by_strategy.followed,
                    stopped=looks.stopped,
                    held_back=watch.conclude(adapted, output.partial) if watch.conclude else None,
                    notices=(
                        *watch.notices,
                        *notices_of(
                            output.partial,
                            looks.kept,
                            higher_is_better=encoder.kind == "classification",
                            name_classes=watch.conclude is None,
                        ),
                    ),
                    rate_search=data.searched,
                    answers_end_at=find_endings(loaded.model, encoder),
                )
                _write(adapted, loaded, data, selection, record, output)
                training.clock.place.unlink(missing_ok=True)
            output.finish()
            return record

        return by_main_process(finish)


def _refuse(
    loaded: LoadedModel,
    data: TrainingData,
    selection: Selection,
    settings: TrainSettings,
    output: RunOutput,
    watch: Watch,
) -> None:
    """Refuse what cannot be trained, before anything is changed."""
    if settings.learning_rate == AUTO:
        raise TrainingError("learning-rate auto is found before a training begins; give a number")
    by_main_process(output.require_free)
    output.require_apart(settings.activation_cache)
    chosen_on = selection.model_revision
    if chosen_on != UNKNOWN and not is_revision(loaded.source, loaded.revision, chosen_on):
        log.warning(
            "the layers were chosen on %s (%s) and are trained on %s (%s)",
            selection.model,
            selection.model_revision,
            loaded.name,
            loaded.revision,
        )
    require_trackers(watch.report_to)
    require_writer(loaded.model, data.encoder.kind, loaded.name)
    require_cache_place(settings.activation_cache)
    if output.merge and is_quantized(loaded.model):
        raise AdapterError("merging into a quantised base would round what was trained; leave --merge away")
    if settings.method == FULL and is_quantized(loaded.model):
        raise AdapterError(
            "method 'full' trains the blocks' own weights, which quantization packs; leave one of them away"
        )
    require_embedded(loaded.model, data.examples)


def _prepare(
    loaded: LoadedModel, data: TrainingData, selection: Selection, settings: TrainSettings, seed: int
) -> tuple[TrainSettings, Any]:
    """The settings with their defaults, and the model with what is to be trained on the selected layers."""
    encoder = data.encoder
    trained = Trained(
        encoder.kind, hidden_size(loaded.model.config), len(selection.selected_layers), selection.num_layers
    )
    settings = with_defaults(fill_epochs(settings, encoder.kind, len(data.examples)), trained)
    if encoder.classes:  # what is merged or exported tells what its outputs mean
        names = names_of_outputs(encoder.classes, loaded.model.config)
        loaded.model.config.id2label = dict(enumerate(names))
        loaded.model.config.label2id = {name: place for place, name in enumerate(names)}
    strategy = parse_strategy(settings.strategy)
    strategy.require_layers(selection.selected_layers, selection.num_layers)
    adapted = _adapted(loaded, data, selection, settings, seed)
    if strategy.name != STATIC:
        adapted_layers(adapted)
    return settings, adapted


def _identity(
    loaded: LoadedModel, data: TrainingData, selection: Selection, settings: TrainSettings, seed: int, watch: Watch
) -> dict[str, Any]:
    """All that the trained weights and the looks at them depend on, by content: a resumed training has the same."""
    source = loaded.source
    return {
        "settings": asdict(settings),
        "seed": seed,
        "mask": selection.mask,
        "modules": selection.modules,
        "blocks": selection.block_pattern,
        "data": asdict(data.record),
        "examples": digest_of(data.examples),
        "classes": list(data.encoder.classes),
        "samples": len(data.examples),
        "model": loaded.revision,
        "dtype": str(loaded.model.dtype),
        "quantization": source.quantization,
        "trust-remote-code": source.trust_remote_code,
        "eval-data": watch.rows,
        "patience": watch.patience,
        RATE_SEARCH: None if data.searched is None else asdict(data.searched),
    }


def _settle(adapted: Any, looks: Looks) -> None:
    """Give the model the weights that are kept.

    Raises:
        TrainingError: they are not finite.
    """
    looks.restore(adapted)
    _require_finite(adapted)


def _numbered(examples: Sequence[Example]) -> list[tuple[int, Example]]:
    """The examples with their places; for several processes also one that does not count."""
    return [*enumerate(examples), *([(NOTHING, min(examples, key=len))] if several() else [])]


def _require_finite(adapted: Any) -> None:
    """Refuse to write weights that the last step has made something else of than numbers.

    Raises:
        TrainingError: those.
    """
    name = first_not_finite((name, p) for name, p in adapted.named_parameters() if p.requires_grad)
    if name is not None:
        raise TrainingError(
            f"training ended with weights that are not finite ({name}); try a lower learning rate, a warm-up, or "
            "another precision"
        )


def _adapted(loaded: LoadedModel, data: TrainingData, selection: Selection, settings: TrainSettings, seed: int) -> Any:
    """The model with what is to be trained on the selected layers."""
    kind, stack = data.encoder.kind, selection.stack(loaded.model)
    config = adapter_config(settings, kind, settings.steps(len(data.examples)), data.encoder.seq2seq)
    if config is not None and settings.method == "adalora" and config.total_step - config.tfinal < 2:
        raise AdapterError(
            f"adalora moves rank between modules step by step, and this training has {config.total_step} "
            f"(tfinal {config.tfinal}); train for more --epochs, or by another method"
        )
    if config is not None:
        config = selection.config_for(loaded.model, config, settings.ranks)
    elif selection.modules is not None:
        raise AdapterError("method 'full' trains whole blocks, but the selection is of modules")
    batches: Sequence[dict[str, torch.Tensor]] = ()
    if settings.method == "eva":
        shown = data.examples[: settings.batch_size * BATCHES_TO_START_FROM]
        batches = batches_of(shown, settings.batch_size, loaded.pad_id, kind, loaded.model.device)
    return store.adapt(
        loaded.model,
        stack,
        selection.selected_layers,
        config,
        with_head=kind in ("classification", "regression"),
        seed=seed,
        batches=batches,
    )


def _write(
    adapted: Any, loaded: LoadedModel, data: TrainingData, selection: Selection, record: RunRecord, output: RunOutput
) -> None:
    """What stands in a run directory beside the adapters."""
    encoder = data.encoder
    reader = reader_as_trained(loaded, encoder)
    reader.save_pretrained(output.partial)
    answers = loaded.model if encoder.kind in ("instruction", "text") else None
    if answers is not None:  # what ends an answer is trained with it
        answers.generation_config = greedy_config(answers, encoder, loaded.pad_id)
        answers.generation_config.save_pretrained(output.partial)
    selection.save(output.partial / SELECTION_FILE)
    record.save(output.partial)
    task = None if not hasattr(adapted, "peft_config") else adapted.active_peft_config.task_type
    write_text(output.partial / "README.md", run_card(record, selection, task, base_id(loaded.name, loaded.revision)))
    if data.read:
        write_text(output.partial / READ_FILE, "".join(f"{digest}\n" for digest in sorted(data.read)))
    if output.merge:
        merged, whole = output.partial / "merged", store.merged(adapted)
        if answers is not None:
            whole.generation_config = answers.generation_config
        whole.save_pretrained(merged)
        reader.save_pretrained(merged)
