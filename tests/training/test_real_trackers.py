"""Weights & Biases, trackio and MLflow themselves, offline: what they hold after `layersift train --report-to`."""

import json
import sqlite3
import sys

import pytest

from apart import installed_apart, run_with

pytestmark = pytest.mark.slow
# MLflow's small package, with what it needs to write a database.
PACKAGES = {"wandb": ["wandb"], "trackio": ["trackio"], "mlflow": ["mlflow-skinny", "sqlalchemy", "alembic"]}


def of_wandb(place):
    (file,) = place.glob("wandb/offline-run-*/*.wandb")
    held = file.read_bytes()
    return [name for name in ("train/loss", "eval/accuracy", "importance/layer 03") if name.encode() in held]


def of_trackio(place):
    (file,) = place.glob("trackio/*.db")
    rows = [json.loads(row) for (row,) in sqlite3.connect(file).execute("select metrics from metrics")]
    return {name for row in rows for name in row}


def of_mlflow(place):
    rows = sqlite3.connect(place / "mlflow.db").execute("select key from metrics").fetchall()
    return {name for (name,) in rows}


@pytest.mark.parametrize(
    ("name", "read", "wanted"),
    [
        ("wandb", of_wandb, ["train/loss", "eval/accuracy", "importance/layer 03"]),
        ("trackio", of_trackio, ["train/loss", "eval/accuracy", "train/importance/layer 03"]),
        ("mlflow", of_mlflow, ["loss", "eval_accuracy", "importance/layer 03"]),
    ],
)
def test_a_tracker_holds_loss_score_and_layers(name, read, wanted, bert_directory, tmp_path, tmp_path_factory):
    packages = installed_apart(tmp_path_factory.getbasetemp() / f"tracker-{name}", PACKAGES[name])
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": "ab"[i % 2]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-m", "layersift", "train", bert_directory, "--data", "rows.jsonl", "--ratio", "0.5"]
    words += ["--epochs", "1", "--batch-size", "4", "--eval-data", "rows.jsonl", "--report-to", name, "-o", "run"]
    places = {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    done = run_with(packages, words, tmp_path, **places)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(wanted) <= set(read(tmp_path))
