"""Every subset of MiniLM's layers, forty of MPNet's: where a rule's choice lies among them, questions 3, 4 and 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from layersift.config.fields import read_as
from layersift.config.quantities import mask_of
from layersift.experiment.choices import Choice
from layersift.experiment.judge import Trained, runs_of
from layersift.experiment.oracle import Placed, Subset, place
from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS, Interval, difference
from pages.measured import CKA, RESULTS, beats, mean_of
from pages.page import Page, intervals, picture_of, table
from pages.settles import most, untrained
from trained import judged_on_test, results_in

DEFAULT, POSITIONS = "mean", ("first", "last", "last-content")
COMMAND = "python benchmarks/evidence_subsets.py SHARED DATA MODELS"
UNTRAINED = "python benchmarks/evidence_untrained.py SHARED DATA MODELS --only MiniLM MPNet"


@dataclass(frozen=True)
class Subsets:
    """A task on which all subsets of a model's layers were trained, or a sample of them."""

    name: str
    model: str
    place: str  # below benchmarks/results/evidence
    read: str  # its name among the importances

    @property
    def words(self) -> str:
        """A model on a task."""
        return f"{self.model} on {self.name}"

    @property
    def _directory(self) -> Path:
        return RESULTS / "evidence" / self.place

    @cached_property
    def trained(self) -> Trained:
        """The trainings that were judged on test rows."""
        return judged_on_test(results_in(self._directory))

    @cached_property
    def _choices(self) -> dict[str, Choice]:
        cells = {cell.mask: cell for cell in self.trained.results}
        return {mask: Choice.of(mask, mask.count("1"), [mask], cell.train) for mask, cell in cells.items()}

    @property
    def sizes(self) -> list[int]:
        """The numbers of layers of which subsets were trained."""
        return sorted(int(path.name.removeprefix("of-")) for path in self._directory.glob("of-*"))

    @cached_property
    def _oracles(self) -> dict[int, dict[str, Any]]:
        return {size: read_json(self._directory / f"of-{size}" / "oracle.json", "an oracle") for size in self.sizes}

    @property
    def num_layers(self) -> int:
        """M."""
        return len(next(iter(self._choices)))

    def of_size(self, size: int) -> list[Subset]:
        """The subsets of so many layers, the best first: all of them, or a sample and what criteria chose."""
        return [read_as(Subset, values, self.place) for values in self._oracles[size]["subsets"]]

    def apart(self, mask: str, other: str) -> Interval | None:
        """The paired difference of two subsets."""
        return difference(runs_of(self._choices[mask], self.trained), runs_of(self._choices[other], self.trained))

    def placed(self, mask: str) -> Placed:
        """Where a subset lies among the others of its size, as an oracle says it of a criterion's choice."""
        (found,) = place({mask: mask}, self.of_size(mask.count("1")), 1, {})
        return found

    def from_the_others(self, mask: str) -> float:
        """How far a subset's score is from the mean of the others of its size: what chance would choose."""
        of = {
            subset.mask: subset.mean for subset in self.of_size(mask.count("1")) if subset.drawn or subset.mask == mask
        }
        return of.pop(mask) - float(np.mean(list(of.values())))

    def chosen(self, size: int) -> dict[str, str]:
        """Each criterion's choice, as the oracle made it."""
        return {placed["criterion"]: placed["mask"] for placed in self._oracles[size]["placed"]}

    def published(self, size: int) -> dict[str, str]:
        """The choice of `select`, and that of `select --compat paper`."""
        return dict(read_json(self._directory / f"of-{size}" / "published.json", "the published rule's choices"))

    def at_position(self, position: str, size: int) -> str:
        """The most important layers at a token position, by the mean over the largest samples."""
        values = most(untrained()[self.model][self.read][position])
        return mask_of(sorted(np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")[:size].tolist()), len(values))


MODELS = "MiniLM's and MPNet's"
TASKS = (
    Subsets("TREC", "MiniLM", "minilm-trec-subsets", "trec"),
    Subsets("SST-2", "MiniLM", "minilm-sst2-subsets", "sst2"),
    Subsets("TREC", "MPNet", "mpnet-trec-subsets", "trec"),
    Subsets("SST-2", "MPNet", "mpnet-sst2-subsets", "sst2"),
)


def each() -> Iterator[tuple[Subsets, int]]:
    """Every task and number of layers."""
    return ((task, size) for task in TASKS if (RESULTS / "evidence" / task.place).exists() for size in task.sizes)


def placed(criterion: str) -> tuple[Interval, Interval, Interval]:
    """Of a criterion's choices, over tasks and sizes: percentile, what they lose to the best, and from chance."""

    def mean(of: Callable[[Subsets, str], float]) -> Interval:
        values = [of(task, task.chosen(size)[criterion]) for task, size in each()]
        return mean_of(values, "tables")

    return (
        mean(lambda task, mask: task.placed(mask).percentile),
        mean(lambda task, mask: task.placed(mask).lost),
        mean(Subsets.from_the_others),
    )


def placed_rows(names: Mapping[str, str]) -> list[list[str]]:
    """Where each criterion's choices lie on average."""
    found = []
    for criterion, words in names.items():
        percentile, lost, chance = placed(criterion)
        low, high = max(0.0, percentile.low or 0.0), min(100.0, percentile.high or 100.0)
        found.append(
            [words, f"{percentile.value:.0f} ({low:.0f} to {high:.0f})", told(lost, POINTS), told(chance, POINTS)]
        )
    return found


def shares_beaten(names: Mapping[str, str]) -> str:
    """What fraction of the other subsets each criterion's choices beat, in words."""
    first, *others = ((words, f"{placed(criterion)[0].value:.0f}") for criterion, words in names.items())
    rest = ", ".join(f"{words} {share}" for words, share in others)
    return f"Of the other subsets of {MODELS} layers {first[0]} beat {first[1]} in 100, {rest}"


def each_placed(names: Mapping[str, str]) -> list[list[str]]:
    """The fraction of the others that each criterion's choice beats, table by table."""
    found = []
    for task, size in each():
        shares = [f"{task.placed(task.chosen(size)[criterion]).percentile:.0f}" for criterion in names]
        found.append([task.words, f"{size} of {task.num_layers}", *shares])
    return found


def chosen_rows(others: Mapping[str, str]) -> list[list[str]]:
    """What CKA's choice scores from those of other criteria, table by table."""
    found = []
    for task, size in each():
        chosen = task.chosen(size)
        apart = [told(task.apart(chosen[CKA], chosen[other]), POINTS) for other in others]
        found.append([task.words, chosen[CKA], *apart])
    return found


def published_page() -> Page:
    """What the published rule's choice scores from ours."""
    rows, drawn = [], []
    for task, size in each():
        masks = task.published(size)
        apart = task.apart(masks["published"], masks["ours"])
        word = "the same" if masks["published"] == masks["ours"] else beats(apart, POINTS)
        rows.append([task.words, str(size), masks["published"], masks["ours"], told(apart, POINTS), word])
        drawn.append((f"{task.words}, {size} of {task.num_layers}", "published", apart))
    return Page(
        name="published",
        question="What do the published scripts' two artefacts cost?",
        answer=_published(rows),
        sections=[
            PUBLISHED,
            table(["model and task", "layers", "published", "ours", "published from ours", ""], rows),
            picture_of("published", "The published rule's choice from ours"),
        ],
        commands=[COMMAND],
        changes=PUBLISHED_CHANGES,
        charts={"published": intervals(drawn, POINTS, "points, the published rule's choice from ours")},
    )


PUBLISHED = """\
The published encoder script reads the first token, whose representation is constant before the first block, so that
block has importance 1 whatever the data. It leaves the first of the ranking out, which takes that away again.
`select --compat paper` chooses as it does, `select` by debiased CKA of mean-pooled tokens. Both were trained with
three seeds."""
PUBLISHED_CHANGES = """\
Decoders, where the script reads the last block after the final norm instead of the first token: not every subset of
theirs can be trained. Larger encoders than MPNet's twelve layers."""


def _published(rows: Sequence[Sequence[str]]) -> str:
    same = sum(row[-1] == "the same" for row in rows)
    worse = [f"{row[1]} layers of {row[0]} ({row[4]})" for row in rows if row[-1] == "worse"]
    better = [f"{row[1]} layers of {row[0]} ({row[4]})" for row in rows if row[-1] == "better"]
    said = [f"in {same} of {len(rows)} cases the published rule chooses what ours does"] if same else []
    said += [f"it loses on {'; '.join(worse)}"] if worse else []
    said += [f"it gains on {'; '.join(better)}"] if better else []
    rest = len(rows) - same - len(worse) - len(better)
    said += [f"in {rest} the difference is inconclusive"] if rest else []
    return f"{'Something' if worse else 'Nothing significant'} on encoders: {', '.join(said)}."


def position_page() -> Page:
    """What the subset that each position chooses scores from that of the default."""
    rows, over_all, drawn = [], [], []
    for position in POSITIONS:
        apart = []
        for task, size in each():
            mask, default = task.at_position(position, size), task.at_position(DEFAULT, size)
            found = task.apart(mask, default)
            apart.append(0.0 if found is None else found.value)
            word = "the same" if mask == default else beats(found, POINTS)
            rows.append([position, task.words, str(size), mask, default, told(found, POINTS), word])
            drawn.append((f"{task.words}, {size} of {task.num_layers}", position, found))
        mean = mean_of(apart, "tables")
        over_all.append((position, mean))
        rows.append(
            [f"**{position}**", f"**over {mean.over}**", "-", "-", "-", told(mean, POINTS), beats(mean, POINTS)]
        )
    return Page(
        name="position",
        question="Which token position?",
        answer=_position(over_all),
        sections=[
            POSITION,
            table(["position", "model and task", "layers", "its choice", "of the mean", "from the mean's", ""], rows),
            picture_of("position", "The choice of each position from that of the mean"),
        ],
        commands=[COMMAND, UNTRAINED],
        changes=POSITION_CHANGES,
        charts={"position": intervals(drawn, POINTS, "points, from the mean over tokens")},
    )


POSITION = """\
The layers that debiased CKA chooses at each token position, by importances over the largest samples, trained with
three seeds. The default of encoders is the mean over a text's tokens, of decoders that over the
response's; *first* is [CLS], *last-content* the last token of the text itself."""
POSITION_CHANGES = """\
Decoders: there what a position chooses has not been trained but for the default. Tasks where the first token has been
trained on, as after pretraining with a sentence objective that uses it."""


def _position(found: Sequence[tuple[str, Interval]]) -> str:
    said = "; ".join(f"{name} {told(mean, POINTS)}" for name, mean in found)
    better = [name for name, mean in found if beats(mean, POINTS) == "better"]
    worse = [name for name, mean in found if beats(mean, POINTS) == "worse"]
    if better:
        return f"{' and '.join(better)} rather than the mean over tokens: {said} points from it."
    lost = f", and {' and '.join(worse)} {'is' if len(worse) == 1 else 'are'} worse" if worse else ""
    return f"The default, the mean over tokens, stands: no other is significantly better{lost} ({said} points from it)."
