"""One training of a task: prepared without weights, then carried out and judged on the rows held back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from layersift.adapt.targets import adapted_modules, trained_by_layer
from layersift.config.defaults import Trained, fill_epochs, hidden_size, with_defaults
from layersift.config.quantities import GIVEN
from layersift.config.select import SelectSettings, how_many
from layersift.config.train import AUTO, TrainSettings, WatchSettings
from layersift.data.split import count_read, count_read_alike, digests_of, overlap_notice, split_off
from layersift.data.table import Table, read_alike, require_rows
from layersift.errors import LayersiftError
from layersift.evaluation.load_run import Split, conclude_on, watch_of
from layersift.experiment.rates import find_rate
from layersift.models.load import LoadedModel, require_writer
from layersift.models.stacks import layers_in, tell_layers
from layersift.processes import from_all_processes, share_of_batch, started
from layersift.progress import Reporter
from layersift.records.reading import describe
from layersift.records.runs import RunRecord
from layersift.records.selection import Selection, make_selection
from layersift.select.choose import select
from layersift.step.activation_cache import require_cache_place
from layersift.task import Task
from layersift.training.fit import TrainingData
from layersift.training.fit import train as train_adapters
from layersift.training.output import RunOutput
from layersift.training.watch import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedTraining:
    """Everything about a training that is known before the model is loaded."""

    task: Task
    selection: Selection | None  # None: the layers of `given`, or to be chosen by `choosing`
    given: tuple[int, ...]
    rule: str  # of those
    choosing: SelectSettings | None
    settings: TrainSettings  # with every default filled in
    watch: WatchSettings
    seed: int
    trained: Table  # the rows to train on
    watched: Table | None  # the rows to score the model on while it trains
    layers: str  # which, in words
    adapters: str  # on what, in words
    modules: tuple[str, ...]
    count: int  # of rows to train on
    auto_rate: bool = False  # whether the learning rate is found by short trainings before

    def described(self) -> dict[str, Any]:
        """What is going to be done, for people."""
        table, settings = self.task.table, self.settings
        return {
            "model": self.task.model.name,
            "data": f"{self.task.data.data}, {self.count} of {len(table.rows)} rows",
            "columns": table.described(),
            "held back": self._held_back(),
            "layers": self.layers,
            "adapters": self.adapters,
            "modules": ", ".join(self.modules),
            "strategy": settings.strategy,
            **({"shared prompt": "computed once; no plan counts that"} if settings.shared_prompt else {}),
            "epochs": settings.num_epochs,
            "steps": settings.steps(self.count),
            "learning rate": f"auto, around {settings.rate:g}" if self.auto_rate else settings.rate,
        }

    def _held_back(self) -> str:
        """How the rows were split."""
        if self.watch.hold_back is None or self.watched is None:
            return "none"
        table = self.task.table
        alike = count_read_alike(table)
        pairs = f"; of rows that read alike ({alike} more than one) all are on one side" if alike else ""
        return (
            f"{len(self.watched.rows)} of {len(table.rows)} rows{', of every class' * bool(table.columns.label)}{pairs}"
        )


def prepare_training(
    task: Task,
    settings: TrainSettings,
    watch: WatchSettings,
    seed: int,
    selection: Selection | None = None,
    choosing: SelectSettings | None = None,
    layers: str | None = None,
) -> PreparedTraining:
    """Split the rows, fill in the defaults, and find what would be trained, without weights.

    Args:
        selection: which layers are trained.
        choosing: how they are chosen on the rows, where none are given.
        layers: which, as people write them; where nothing says which, all layers are trained.

    Raises:
        LayersiftError: the data, the model or a setting cannot be used.
    """
    table = task.table
    trained, watched = _split_rows(table, watch, seed)
    if watch.hold_back is not None and selection is not None and _scored_on(selection, table):
        log.warning("the layers were chosen on all rows, with those that are held back here")
    count = min(settings.max_samples or len(trained.rows), len(trained.rows))
    require_shareable(settings)
    auto_rate = settings.learning_rate == AUTO
    settings = fill_epochs(settings, table.kind, count)
    adapter = task.adapter(settings, settings.steps(count))
    require_writer(task.empty, table.kind, task.model.name)
    require_cache_place(settings.activation_cache)
    stack = task.stack if selection is None else selection.stack(task.empty)
    chosen, rule = tuple(range(stack.num_layers)), "all layers"
    if selection is not None:
        chosen = selection.selected_layers
        which = f"{selection.mask} ({selection.rule})"
        if adapter is not None:
            adapter = selection.config_for(task.empty, adapter, settings.ranks)
    elif layers is not None:
        chosen, rule = layers_in(stack, layers), f"{GIVEN}{layers}"
        which = f"{tell_layers(stack, chosen)} counted from 0"
        adapter = task.with_ranks(adapter, settings, chosen)
    else:
        which = f"all {len(chosen)}; nothing is scored, since neither --selection, --ratio nor --layers is given"
        adapter = task.with_ranks(adapter, settings)
    number = len(chosen)
    if choosing is not None:
        number = how_many(choosing, stack.num_layers) or stack.num_layers
        which = f"{number} of {stack.num_layers}, to be chosen by {choosing.criterion}; adapters below: of all"
    settings = with_defaults(settings, Trained(table.kind, hidden_size(task.empty.config), number, stack.num_layers))
    modules = adapted_modules(task.empty, stack, chosen, adapter)
    by_layer = trained_by_layer(task.empty, stack, chosen, adapter)
    parameters = f", {sum(by_layer):,} parameters" if by_layer else ""
    return PreparedTraining(
        task,
        selection,
        chosen,
        rule,
        choosing,
        settings,
        watch,
        seed,
        trained,
        watched,
        layers=which,
        adapters=f"{settings.method} on {len(modules)} modules{parameters}",
        modules=modules,
        count=count,
        auto_rate=auto_rate,
    )


def require_shareable(settings: TrainSettings) -> None:
    """Refuse what the processes that were started cannot share.

    Raises:
        LayersiftError: the learning rate has to be searched; or a batch cannot be shared evenly.
    """
    if settings.learning_rate == AUTO and started() > 1:
        raise LayersiftError("--learning-rate auto searches in one process; give the rate that it finds there")
    share_of_batch(settings.batch_size, started())


def carry_out(prepared: PreparedTraining, output: RunOutput, reporter: Reporter) -> RunRecord:
    """Load the model, choose its layers where they are not chosen yet, train them, and judge the run.

    Raises:
        LayersiftError: the model, the data, a setting or the output cannot be used.
        TrainingError: the training came to nothing.
    """
    task, settings, seed = prepared.task, prepared.settings, prepared.seed
    loaded = task.load(seed, stays_on_cpu=output.sharded)
    selection = prepared.selection or _choose(prepared, loaded, reporter)
    searched = None
    if prepared.auto_rate:
        del loaded  # short trainings load their own
        searched = output.kept_search() or find_rate(task, prepared.trained, selection, settings, seed, reporter)
        reporter.say(searched.described())
        settings = replace(settings, learning_rate=searched.chosen)
        loaded = task.load(seed)
    encoded = task.encode(settings.max_samples, seed, prepared.trained)
    if encoded.notice:
        reporter.say(encoded.notice)
    read = frozenset(chain.from_iterable(digests_of(prepared.trained, encoded)))
    data = TrainingData(task.encoder, encoded.examples, describe(prepared.trained, encoded.notice), searched, read)
    watch = _watch(prepared, data, loaded.pad_id, reporter)
    with reporter.stage("training", settings.steps(len(encoded.examples)), "steps") as progress:
        return train_adapters(loaded, data, selection, settings, output, seed=seed, progress=progress, watch=watch)


def _choose(prepared: PreparedTraining, loaded: LoadedModel, reporter: Reporter) -> Selection:
    """The layers that the rows choose, or those that are given."""
    task, choosing = prepared.task, prepared.choosing
    if choosing is None:
        record = describe(prepared.trained)
        return make_selection(loaded.name, loaded.revision, task.stack, prepared.given, record, prepared.rule)
    sample = task.sample(choosing, prepared.trained)
    with reporter.stage("reading representations", len(sample.examples)) as progress:
        selection = select(loaded, sample, choosing, progress=progress)
    selection = from_all_processes(selection)[0]  # rounding may differ, and all have to train the same layers
    reporter.say(f"layers {selection.mask} ({selection.rule})")
    return selection


def _scored_on(selection: Selection, table: Table) -> bool:
    """Whether scores on these rows chose the layers."""
    return bool(selection.metric) and selection.data.fingerprint == f"sha256:{table.fingerprint}"


def _split_rows(table: Table, watch: WatchSettings, seed: int) -> tuple[Table, Table | None]:
    """The rows to train on, and those to score the model on while it trains."""
    if watch.hold_back is not None:
        trained, held_back = split_off(table, watch.hold_back, seed, by_class=True)
        require_rows(trained)
        return trained, held_back
    if watch.eval_data is not None:
        return table, read_alike(watch.eval_data, table.columns, table.kind, watch.eval_split)
    return table, None


def _watch(prepared: PreparedTraining, data: TrainingData, pad_id: int, reporter: Reporter) -> Watch:
    """How the training is watched, on rows beside those it is trained on if there are some."""
    settings, watched, encoder = prepared.watch, prepared.watched, prepared.task.encoder
    most_tokens = prepared.settings.batch_size * max(map(len, data.examples))
    # A terminal has the bar; a log has lines now and then.
    tell = reporter.say if watched is not None or not reporter.draws_bars else None
    if watched is None:
        return watch_of(settings, (), encoder, pad_id, most_tokens, tell)
    encoded = prepared.task.encode(None, 0, watched)
    if encoded.notice:
        reporter.say(f"{settings.eval_data or 'held back'}: {encoded.notice}")
    watch = watch_of(settings, encoded.examples, encoder, pad_id, most_tokens, tell)
    seen = count_read(digests_of(watched, encoded), data.read)
    if settings.hold_back is None:
        said = overlap_notice(seen, len(encoded.rows))
        return replace(watch, notices=(f"{settings.eval_data}: {said}",)) if said else watch
    split = Split(settings.hold_back, prepared.trained, watched, encoded, seen)
    chose = settings.patience is not None
    return replace(watch, conclude=conclude_on(split, encoder, pad_id, most_tokens, chose_the_stop=chose))
