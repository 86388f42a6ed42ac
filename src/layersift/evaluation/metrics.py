"""Evaluate a model, with or without adapters, on held-back data; a classification also class by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layersift.config.recipe import TaskKind
from layersift.data.encode import Encoder
from layersift.data.examples import (
    Example,
    collate,
    independent_batches,
    labelled_batch,
    token_losses,
    wrap_model_errors,
)
from layersift.data.table import Table
from layersift.errors import DataError, ModelError
from layersift.evaluation.generation import Answer, answers_of, final_answer, letter_of
from layersift.processes import from_shares, own_share
from layersift.records.runs import Result
from layersift.represent.hooks import evaluation_mode
from layersift.statistics.intervals import Runs, error_of_mean, limits_of
from layersift.step.losses import response_losses

TOKEN_BUDGET = 2048
ROWS_OF_A_CLASS = 5  # a class that is recognised half of the time is missed on so many with 3 %


METRICS: dict[TaskKind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "instruction": ("loss", "perplexity"),
    "text": ("loss", "perplexity"),
}
MEANS = frozenset({"accuracy", "loss"})  # metrics that are the weighted mean of the outcomes


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a set of samples, and one outcome a sample for paired comparisons.

    Args:
        metrics: values by name, the first being the score; None where undefined, as a correlation with constant
            predictions is.
        samples: n, how many were judged.
        outcomes: (n,), 1 right and 0 wrong; squared error; or mean loss over the response's tokens, in nats.
        weights: (n,), what each outcome counts in the mean, the number of the response's tokens; empty: all count the
            same.
        predicted: (n,), indices of classes, or numbers; empty for written answers.
        never_predicted: classes that have enough samples and were never predicted.

    Examples:
        >>> from layersift import Evaluation
        >>> judged = Evaluation({"accuracy": 0.75}, samples=4, outcomes=(1.0, 1.0, 0.0, 1.0))
        >>> judged.standard_error
        0.25
    """

    metrics: dict[str, float | None]
    samples: int
    outcomes: tuple[float, ...]
    weights: tuple[float, ...] = ()
    predicted: tuple[float, ...] = ()
    never_predicted: tuple[str, ...] = ()

    @property
    def standard_error(self) -> float | None:
        """Of the mean outcome, over the samples; None where the first metric is not such a mean."""
        if len(self.outcomes) < 2 or next(iter(self.metrics)).split()[0] not in MEANS:
            return None
        return error_of_mean(self.outcomes, self.weights)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values = {"metrics": self.metrics, "samples": self.samples, "outcomes": list(self.outcomes)}
        return values | ({"weights": list(self.weights)} if self.weights else {})


def one_run(judged: Evaluation | Result) -> Runs:
    """What was judged once, for comparisons over its samples by its first metric."""
    metric, score = next(iter(judged.metrics.items()))
    outcomes = {0: np.array(judged.outcomes)}
    return Runs({0: score or 0.0}, outcomes, metric.split()[0] in MEANS, judged.weights, limits=limits_of(metric))


def evaluate(
    model: Any,
    encoder: Encoder,
    examples: Sequence[Example],
    pad_id: int,
    progress: Callable[[int], None] | None = None,
    most_tokens: int = TOKEN_BUDGET,
) -> Evaluation:
    """Metrics of ``model`` on labelled examples, in batches of at most so many tokens.

    Classification: accuracy, F1 (of the second class where there are two, else macro-averaged), Matthews correlation.
    Regression: Pearson and Spearman correlation. Text: loss per response token in nats, and perplexity.
    """
    return _summary(encoder, examples, read_outputs(model, encoder, examples, pad_id, progress, most_tokens))


def read_outputs(
    model: Any,
    encoder: Encoder,
    examples: Sequence[Example],
    pad_id: int,
    progress: Callable[[int], None] | None = None,
    most_tokens: int = TOKEN_BUDGET,
) -> list[Any]:
    """What the model says of each example, in order: logits (C,) of a classification, the number (1,) of a regression,
    of written answers the summed loss and the number of their tokens.

    Raises:
        ModelError: it is not finite.
    """
    share = own_share(len(examples))  # all of them, where there is but one process
    own = [examples[i] for i in share]
    outputs: list[Any] = [None] * len(own)
    with evaluation_mode(model), wrap_model_errors(model, own):
        for batch in independent_batches(model, own, [len(e) for e in own], most_tokens, pad_id):
            members, places = [own[i] for i in batch], [share[i] for i in batch]
            if encoder.kind in ("instruction", "text"):
                inputs = {k: v.to(model.device) for k, v in labelled_batch(members, pad_id, encoder.kind).items()}
                losses, counts = _losses(model, inputs, encoder.seq2seq)
                _require_finite(losses[:, None], places, "loss")
                outputs_of_batch: Any = zip(losses.tolist(), counts.tolist(), strict=True)
            else:
                logits = model(**{k: v.to(model.device) for k, v in collate(members, pad_id).items()}).logits
                _require_finite(logits, places, "logits")
                outputs_of_batch = logits.float().cpu()
            for i, output in zip(batch, outputs_of_batch, strict=True):
                outputs[i] = output
            if progress is not None:
                progress(len(batch))
    return from_shares(outputs, len(examples))


def _require_finite(values: torch.Tensor, batch: Sequence[int], what: str) -> None:
    """Refuse to judge by what is no number.

    Raises:
        ModelError: a sample has values (B, ...) that are not finite.
    """
    bad = ~torch.isfinite(values).flatten(1).all(dim=1)
    if bool(bad.any()):
        sample = min(i for i, wrong in zip(batch, bad.tolist(), strict=True) if wrong) + 1
        raise ModelError(
            f"the model's {what} on test sample {sample} is not finite, so it cannot be judged; its weights or its "
            "precision are at fault"
        )


def _losses(model: Any, inputs: dict[str, torch.Tensor], seq2seq: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss (B,) and number of labelled tokens (B,)."""
    if seq2seq:  # the decoder's inputs are made of the labels
        return token_losses(model(**inputs).logits, inputs["labels"], seq2seq)
    labels = inputs.pop("labels")
    return response_losses(model, inputs, labels)


def _summary(encoder: Encoder, examples: Sequence[Example], outputs: Sequence[Any]) -> Evaluation:
    if encoder.kind in ("instruction", "text"):
        losses, counts = np.array(outputs, dtype=float).T
        loss = float(losses.sum() / counts.sum())
        summary = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        means = losses / np.maximum(counts, 1)
        return Evaluation(_defined(summary), len(examples), tuple(means.tolist()), tuple(counts.tolist()))
    truth = [e.label for e in examples]
    if encoder.kind == "regression":
        from scipy import stats  # takes a second to import

        predictions = [float(output[0]) for output in outputs]
        alone = len(truth) < 2  # of which no correlation is defined
        pearson = math.nan if alone else float(stats.pearsonr(truth, predictions).statistic)
        spearman = math.nan if alone else float(stats.spearmanr(truth, predictions).statistic)
        errors = tuple((float(t or 0) - p) ** 2 for t, p in zip(truth, predictions, strict=True))
        return Evaluation(
            _defined({"pearson": pearson, "spearman": spearman}), len(examples), errors, (), tuple(predictions)
        )
    from sklearn import metrics  # takes two seconds to import

    classes = [int(output.argmax()) for output in outputs]
    binary = len(encoder.classes) == 2
    summary = {
        "accuracy": float(metrics.accuracy_score(truth, classes)),
        "f1": float(metrics.f1_score(truth, classes, average="binary" if binary else "macro", zero_division=0)),
        "matthews": float(metrics.matthews_corrcoef(truth, classes)),
    }
    outcomes = tuple(float(t == p) for t, p in zip(truth, classes, strict=True))
    rows, given = Counter(truth), set(classes)
    never = tuple(n for i, n in enumerate(encoder.classes) if rows[i] >= ROWS_OF_A_CLASS and i not in given)
    return Evaluation(_defined(summary), len(examples), outcomes, (), tuple(classes), never)


def _defined(summary: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in summary.items()}


def exact_match(
    model: Any,
    encoder: Encoder,
    table: Table,
    rows: Sequence[int],
    pad_id: int,
    max_new_tokens: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Share of rows whose greedily generated answer names the right choice, or is in mathematics what the reference is.

    Raises:
        DataError: a reference answer cannot be read.
        LayersiftError: an expression needs math-verify, which is not installed.
    """
    lettered = table.columns.choices is not None
    wanted: list[Answer | str] = []
    for index in rows:
        where, reference = table.where(index), encoder.answer(table, index)
        answer = letter_of(reference) if lettered else final_answer(reference)
        if answer is None:
            raise DataError(
                f"{where}: exact match needs a number or an expression in the response; {reference[-60:]!r} cannot be "
                "read as one"
            )
        wanted.append(answer)
    prompts = [encoder.prompt(table, index) for index in rows]
    texts = answers_of(model, encoder, prompts, pad_id, max_new_tokens, progress)
    right = [float(text is not None and _is(answer, text)) for text, answer in zip(texts, wanted, strict=True)]
    return Evaluation({"exact_match": float(np.mean(right))}, len(right), tuple(right))


def _is(wanted: Answer | str, text: str) -> bool:
    return letter_of(text) == wanted if isinstance(wanted, str) else wanted.equals(final_answer(text))


@dataclass(frozen=True)
class Majority:
    """Always the class that is the most common in training."""

    name: str
    accuracy: Mapping[str, float]  # by the name of the test rows; a single set of them has none

    def __str__(self) -> str:
        scores = ", ".join(f"{score:.4f}{f' on {name}' if name else ''}" for name, score in self.accuracy.items())
        return f"always {self.name!r}, the most common class in training: accuracy {scores}"


def majority_of(counts: Mapping[str, int], tested: Mapping[str, Sequence[str]]) -> Majority | None:
    """What the most common class scores; None where the training rows were no classes.

    Args:
        counts: training rows by class. Of equally common ones the first counts.
        tested: the classes of the test rows, by the name of the set.
    """
    if not counts:
        return None
    name = max(counts, key=lambda each: counts[each])
    return Majority(name, {of: Counter(given)[name] / len(given) for of, given in tested.items() if given})


def classes_in(examples: Sequence[Example], names: Sequence[str]) -> list[str]:
    """The class of each labelled example."""
    return [names[int(e.label)] for e in examples if e.label is not None]


@dataclass(frozen=True)
class ByClass:
    """What a classifier does with each class; a figure is 0 where nothing is there to divide by."""

    names: tuple[str, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    rows: tuple[int, ...]  # of the class
    confusion: tuple[tuple[int, ...], ...]  # rows of a class (down) by what they were taken for (across)

    def table(self) -> list[list[str]]:
        """A header, and a row a class."""
        figures = zip(self.names, self.precision, self.recall, self.f1, self.rows, strict=True)
        body = [[name, f"{p:.4f}", f"{r:.4f}", f"{f:.4f}", str(n)] for name, p, r, f, n in figures]
        return [["class", "precision", "recall", "f1", "rows"], *body]

    def confusion_table(self) -> list[list[str]]:
        """A header, and a row a class: how many of it were taken for which."""
        body = [[name, *map(str, row)] for name, row in zip(self.names, self.confusion, strict=True)]
        return [["is, taken for", *self.names], *body]


def by_class(names: Sequence[str], truth: Sequence[int], predicted: Sequence[int]) -> ByClass:
    """The report of predictions (N,) against labels (N,), both as indices of ``names``."""
    every = list(range(len(names)))
    from sklearn import metrics  # takes two seconds to import, and much has no use for it

    precision, recall, f1, rows = metrics.precision_recall_fscore_support(
        truth, predicted, labels=every, zero_division=0
    )
    confusion = np.asarray(metrics.confusion_matrix(truth, predicted, labels=every))
    return ByClass(
        names=tuple(names),
        precision=tuple(map(float, precision)),
        recall=tuple(map(float, recall)),
        f1=tuple(map(float, f1)),
        rows=tuple(map(int, rows)),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )
