"""A training that is watched: its log, early stopping, trackers; and that none of it changes a step."""

import json
import sys
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from safetensors.torch import load_file

from layersift.errors import LayersiftError
from layersift.records.runs import Look
from layersift.training import trainer
from layersift.training.watch import LOG_FILE, Watch, require_trackers
from training import FAST, classify

LONG = replace(FAST, epochs=4)


def entries(run):
    return [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]


def weights(run):
    return load_file(run / "adapter_model.safetensors")


def scripted(scores, kept):
    """A judge with these scores, one a look, which keeps what was trained then."""
    following = cycle(scores)

    def judge(model, share):
        kept.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        return Look(share, next(following), ())

    return judge


def test_the_log_has_the_loss_of_every_step_of_a_short_training(bert_directory, tmp_path):
    record = classify(bert_directory).train(tmp_path / "run", FAST)
    log = entries(tmp_path / "run")
    assert [entry["step"] for entry in log] == list(range(1, record.steps + 1))
    assert sum(entry["loss"] for entry in log) / len(log) == pytest.approx(record.train_loss, abs=1e-6)
    assert log[0]["learning_rate"] == pytest.approx(FAST.learning_rate)


def test_a_training_that_is_resumed_has_the_log_of_one_that_is_not(bert_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINTS_A_RUN", 3)

    def kill(steps):
        kill.done += steps
        if kill.done == 6:  # behind the checkpoint at step 4, and after two more entries
            raise KeyboardInterrupt

    kill.done = 0
    classify(bert_directory).train(tmp_path / "whole", FAST)
    with pytest.raises(KeyboardInterrupt):
        classify(bert_directory).train(tmp_path / "killed", FAST, progress=kill)
    classify(bert_directory).train(tmp_path / "killed", FAST, resume=True)
    whole, killed = entries(tmp_path / "whole"), entries(tmp_path / "killed")
    assert [entry["step"] for entry in killed] == [entry["step"] for entry in whole]
    for one, other in zip(killed, whole, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize(("sign", "higher"), [(1, True), (-1, False)])
def test_early_stopping_keeps_what_scored_best(sign, higher, bert_directory, tmp_path):
    kept = []
    judge = scripted([sign * s for s in (0.5, 0.9, 0.9, 0.7, 0.95)], kept)  # equal is no better
    watch = Watch(judge, patience=2, higher_is_better=higher, metric="accuracy")
    record = classify(bert_directory).train(tmp_path / "run", LONG, watch=watch)
    assert len(kept) == 4
    assert record.steps == 12
    assert record.stopped == f"the best of 4 looks: after 25.0% (accuracy {sign * 0.9:.4f}), ended at 50.0%"
    saved = weights(tmp_path / "run")
    best = {name.replace(".default", ""): value.cpu() for name, value in kept[1].items()}
    last = {name.replace(".default", ""): value.cpu() for name, value in kept[3].items()}
    shared = [name for name in saved if name in best]
    assert len(shared) >= len(saved) - 2  # a head has another name inside of the model
    assert all(torch.equal(saved[name], best[name]) for name in shared)
    assert not all(torch.equal(saved[name], last[name]) for name in shared)
    assert not list((tmp_path / "run").glob("best*"))


def test_where_the_score_grows_to_the_end_nothing_is_lost(bert_directory, tmp_path):
    kept = []
    watch = Watch(scripted([i / 10 for i in range(8)], kept), patience=1)
    record = classify(bert_directory).train(tmp_path / "watched", LONG, watch=watch)
    classify(bert_directory).train(tmp_path / "alone", LONG)
    assert record.steps == 24
    alone, watched = weights(tmp_path / "alone"), weights(tmp_path / "watched")
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_undefined_scores_never_count_as_better(bert_directory, tmp_path):
    kept = []
    record = classify(bert_directory).train(tmp_path / "run", LONG, watch=Watch(scripted([None], kept), patience=3))
    assert (len(kept), record.stopped) == (3, None)


def test_lines_come_now_and_then(bert_directory, tmp_path):
    said = []
    watch = Watch(scripted([0.5], []), metric="accuracy", tell=said.append)
    classify(bert_directory).train(tmp_path / "run", LONG, watch=watch)
    assert said.count("after 50% of the steps: accuracy 0.5000") == 1
    steps = [line for line in said if line.startswith("step ")]
    assert len(steps) == 4
    assert steps[0].startswith("step 5 of 24: loss ")


def test_tensorboard_has_loss_score_and_importances_in_the_run(bert_directory, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    setting = classify(bert_directory)
    watch = Watch(scripted([0.25], []), metric="accuracy", report_to=("tensorboard",))
    record = setting.train(tmp_path / "run", FAST, watch=watch)
    read = events.EventAccumulator(str(tmp_path / "run" / "logs"))
    read.Reload()
    tags = read.Tags()["scalars"]
    (loss,) = [tag for tag in tags if tag.endswith("train/loss")]
    (score,) = [tag for tag in tags if tag == "eval/accuracy"]
    assert [event.step for event in read.Scalars(loss)] == list(range(1, record.steps + 1))
    assert {event.value for event in read.Scalars(score)} == {0.25}
    layers = [tag for tag in tags if "importance" in tag]
    known = [value for value in setting.selection.importance if value is not None]
    assert [read.Scalars(tag)[0].value for tag in sorted(layers)] == pytest.approx(known)
    assert [entry["step"] for entry in entries(tmp_path / "run")] == list(range(1, record.steps + 1))


def test_a_tracker_that_fails_is_named_and_costs_no_step(bert_directory, tmp_path, monkeypatch):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter

    def broken(self, tag, value, step, **more):
        if step == 5 and tag == "train/loss":
            raise RuntimeError("no connection\nto the tracker")

    watch = Watch(report_to=("tensorboard",))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "add_scalar", broken)
        with pytest.raises(LayersiftError, match=r"report-to tensorboard: no connection to the tracker; .*--resume"):
            classify(bert_directory).train(tmp_path / "run", FAST, watch=watch)
    classify(bert_directory).train(tmp_path / "run", FAST, resume=True)
    classify(bert_directory).train(tmp_path / "never failed", FAST)
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "never failed")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_not_the_trackers_fault_is_not_told_of_it(bert_directory, tmp_path):
    def fail(steps):
        raise RuntimeError("of the progress bar")

    watch = Watch(report_to=("tensorboard",))
    with pytest.raises(RuntimeError, match="progress bar"):
        classify(bert_directory).train(tmp_path / "run", FAST, watch=watch, progress=fail)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("layersift.training.watch.find_spec", lambda name: None)
    with pytest.raises(LayersiftError, match="trackio: the package is not installed; pip install trackio"):
        require_trackers(["trackio"])
