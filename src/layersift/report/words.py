"""An advice in plain words and tables."""

from __future__ import annotations

from layersift.experiment.advise import Advice
from layersift.experiment.candidates import KINDS
from layersift.experiment.demo import Followed
from layersift.experiment.prices import Priced
from layersift.progress import time_told
from layersift.report.tables import difference_text
from layersift.statistics.verdicts import unit_of

# What each kind leaves out, and what our own runs say of it.
RISKS = {
    "all": "nothing is left out",
    "lower rank": "the adapters say less; half the rank lost less than half of the layers on GSM8K, and nothing to be "
    "seen on TREC and SST-2",
    "rising": "lower layers stop learning early; on TREC, SST-2, digits and docstrings it lost 0.3 to 1.0 points on "
    "average, seen on the last alone; on GSM8K 0.01 nats a token, 0.04 in a short training, less than the last half",
    "shorter": "fewer epochs; where training had levelled off it lost nothing to be seen (TREC, SST-2, digits); of "
    "short trainings it lost six points in the demo, more than anything else, and 0.02 nats on GSM8K, less",
    "last": "lower layers stay as they are; the last half lost 0.1 to 1.9 points on six classification tasks, one "
    "point on average (0.4 to 1.6), and 0.03 to 0.09 nats a token on decoders' maths and code",
    "modules": "the other modules stay as they are; attention alone lost nothing to be seen on TREC, SST-2 and digits, "
    "all but attention 6 points on digits, within a wide interval",
    "last, lower rank": "lower layers stay as they are, and the adapters say less",
    "few": "most layers stay as they are; expect to lose",
}


def advice_rows(advice: Advice) -> list[list[str]]:
    """Header and one row a candidate."""
    header = ["way of training", "fits", "operations", "time here", "memory", "parameters", "on disk", "batch"]
    return [header, *(_row(one) for one in advice.priced)]


def _row(one: Priced) -> list[str]:
    settings = one.candidate.settings
    batch = f"{settings.batch_size} x {settings.gradient_accumulation}"
    return [
        one.candidate.name,
        "yes" if one.fits else "; ".join(one.misses),
        f"{one.operations:.2f}",
        time_told(one.seconds),
        f"{one.memory_bytes / 10**9:.3g} GB",
        f"{one.parameters:,}",
        f"{one.adapter_bytes / 10**6:.3g} MB",
        batch + (", checkpointing" if settings.gradient_checkpointing else ""),
    ]


def advice_words(advice: Advice) -> list[str]:
    """One recommendation with its price and its risk, the two next best, and what would change it."""
    chosen = advice.recommended
    if chosen is None:
        return ["Nothing that is known here fits.", *(f"{help_[0].upper()}{help_[1:]}." for help_ in advice.helps)]
    settings = chosen.candidate.settings
    said = [
        f"Train {chosen.candidate.name}: {chosen.operations:.2f} of the operations that all layers take "
        f"({time_told(chosen.seconds)} on this machine), {chosen.memory_bytes / 10**9:.3g} GB at the peak, "
        f"{chosen.parameters:,} parameters, {chosen.adapter_bytes / 10**6:.3g} MB on disk.",
        f"Risk: {RISKS[chosen.candidate.kind]}.",
    ]
    if settings.gradient_accumulation > advice.recipe.train.gradient_accumulation:
        said.append(
            f"Batches of {settings.batch_size} are accumulated {settings.gradient_accumulation} times: the same "
            "training in less memory."
        )
    if settings.gradient_checkpointing and not advice.recipe.train.gradient_checkpointing:
        said.append("Gradient checkpointing is on: the same training, slower, in less memory.")
    said += _of_the_trial(advice, chosen)
    said += [
        f"Next best: {one.candidate.name} ({one.operations:.2f} of the operations, {one.memory_bytes / 10**9:.3g} GB, "
        f"{one.parameters:,} parameters{_tried(advice, one)}). Risk: {RISKS[one.candidate.kind]}."
        for one in advice.next_best
    ]
    better = {one.candidate.kind: one for one in reversed(advice.priced) if not one.fits and _before(one, chosen)}
    said += [
        f"It would be {one.candidate.name} but for {'; '.join(one.misses)}."
        for one in sorted(better.values(), key=lambda one: KINDS.index(one.candidate.kind))
    ]
    if advice.trial is None:
        said.append("None of this has been tried on these data; docs/advise.md says what the order rests on.")
    return said


def _before(one: Priced, other: Priced) -> bool:
    return KINDS.index(one.candidate.kind) < KINDS.index(other.candidate.kind)


def _of_the_trial(advice: Advice, chosen: Priced) -> list[str]:
    """What a trial says for the recommendation, and what it does not."""
    trial = advice.trial
    if trial is None:
        return []
    unit, last = unit_of(trial.metric), trial.rounds[-1]
    others = [tried for tried in last.tried if tried.from_first is not None]
    said = [
        f"Tried on these data: {len(trial.order)} ways, on {trial.samples} rows held back, with one seed; that took "
        f"{trial.spent:.2f} of what training all layers takes ({time_told(trial.seconds)})."
    ]
    found = trial.last(chosen.candidate.name)
    if found is not None and found[1].score is not None:
        said.append(
            f"After {last.share:.2g} of its training {chosen.candidate.name} scored {unit.tell(found[1].score)} "
            f"{unit.name}."
        )
    alike = [tried.name for tried in others if tried.from_first is not None and tried.from_first.holds_zero]
    if alike:
        said.append(
            f"The trial cannot tell {', '.join(alike)} from it; of those alike, what leaves out least is advised. A "
            "larger trial would tell more."
        )
    return said


def _tried(advice: Advice, one: Priced) -> str:
    """How one did in its last round of the trial, beside the round's first."""
    found = None if advice.trial is None else advice.trial.last(one.candidate.name)
    if advice.trial is None or found is None or found[1].from_first is None:
        return ""
    unit = unit_of(advice.trial.metric)
    return f", {difference_text(found[1].from_first, unit)} {unit.name} from the first at {found[0].share:.2g} of it"


def trial_headings(advice: Advice) -> list[tuple[str, list[list[str]]]]:
    """A titled table for each round of the trial."""
    if advice.trial is None:
        return []
    unit, found = unit_of(advice.trial.metric), []
    for number, held in enumerate(advice.trial.rounds, 1):
        rows = [["way of training", f"{advice.trial.metric}, {unit.name}", "from the first", "steps"]]
        for tried in held.tried:
            score = f"failed: {tried.why}" if tried.score is None else unit.tell(tried.score)
            rows.append([tried.name, score, difference_text(tried.from_first, unit), str(tried.steps)])
        found.append((f"Trial, round {number}: each for {held.share:.2g} of its own training", rows))
    return found


def followed_words(followed: Followed) -> list[str]:
    """What came of the demo's advice."""
    unit, result = unit_of(next(iter(followed.result.metrics))), followed.result
    if result.score is None or followed.all_layers is None:
        return []
    apart = difference_text(followed.from_all, unit)
    said = f"Now it has been: {unit.tell(result.score)} {unit.name}, from all layers {apart}"
    if result.train_seconds and followed.all_layers.train_seconds:
        said += f", in {result.train_seconds / followed.all_layers.train_seconds:.2f} of the seconds"
    return [f"{said}. The brackets are its 95% interval over {result.samples} test rows, with one seed."]
