"""Looks at held-back rows while a training is under way: what they see, and that they change nothing."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from layersift.evaluation.load_run import load_run
from layersift.evaluation.metrics import evaluate
from layersift.records.runs import Look
from layersift.training import watch
from layersift.training.watch import SHARES, Watch, read_looks
from training import FAST, classify

# Behind each epoch's third step: within epochs, when the cut has moved, and with kept states.
LONG = replace(FAST, epochs=4, strategy="freezing:2@0.4", prefix_dropout=False)


def judge_of(setting, seen=None):
    def judge(model, share):
        found = evaluate(model, setting.encoder, setting.examples, 0)
        if seen is not None:
            seen.append((share, torch.rand(1)))  # a judge that draws random numbers
        return Look(share, found.metrics["accuracy"], found.outcomes)

    return judge


@pytest.fixture
def weights(tmp_path, bert_directory):
    def trained(name, settings=LONG, **more):
        classify(bert_directory).train(tmp_path / name, settings, seed=3, **more)
        return load_file(tmp_path / name / "adapter_model.safetensors")

    return trained


@pytest.mark.parametrize("settings", [FAST, LONG], ids=["with dropout", "freezing, with kept states"])
def test_a_training_that_is_looked_at_is_the_one_that_is_not(weights, bert_directory, settings, tmp_path):
    seen = []
    looked_at = weights("looked", settings, watch=Watch(judge_of(classify(bert_directory), seen)))
    alone = weights("alone", settings)
    steps = 6 * settings.epochs
    assert [share for share, _ in seen] == sorted({math.ceil(share * steps) / steps for share in SHARES})
    assert all(torch.equal(looked_at[name], alone[name]) for name in alone)
    assert read_looks(tmp_path / "alone") == ()


def test_the_last_look_sees_what_is_then_saved(weights, bert_directory, tmp_path):
    setting = classify(bert_directory)
    weights("run", watch=Watch(judge_of(setting)))
    looks = read_looks(tmp_path / "run")
    assert looks[-1].share == 1.0
    _, loaded, encoder = load_run(tmp_path / "run")
    assert looks[-1].outcomes == evaluate(loaded.model, encoder, setting.examples, 0).outcomes
    assert looks[0].outcomes != looks[-1].outcomes


def test_a_training_that_is_resumed_has_all_its_looks(weights, bert_directory, tmp_path):
    class KilledError(Exception):
        pass

    done = []

    def kill(steps):
        done.append(steps)
        if sum(done) == 14:
            raise KilledError

    judge = judge_of(classify(bert_directory))
    weights("whole", watch=Watch(judge))
    with pytest.raises(KilledError):
        weights("killed", watch=Watch(judge), progress=kill)
    weights("killed", watch=Watch(judge), resume=True)
    assert read_looks(tmp_path / "killed") == read_looks(tmp_path / "whole")
    assert len(read_looks(tmp_path / "whole")) == len(SHARES)


def test_looks_do_not_count_as_training(weights, bert_directory, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])

    def judge(model, share):
        now[0] += 1000
        return Look(share, 1.0, (1.0,))

    record = classify(bert_directory).train(tmp_path / "run", FAST, watch=Watch(judge))
    assert record.train_seconds == 0
