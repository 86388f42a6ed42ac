"""A classification class by class, and what always giving the most common class would have scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layersift.data.examples import Example


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
