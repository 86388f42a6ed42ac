"""SmolLM2 rewarded for right sums, by placement of its adapters: table *reinforcement* of docs/results/protocol.md.

    python benchmarks/evidence_reinforcement.py MODELS [--jobs 1]

MODELS is what evidence_models.py fetched; TRL has to be installed. A completion's reward is 1 where it begins with the
right sum and ends its line there, else 0. Trained by TRL's GRPO, and beside it on the right answers (SFTTrainer), for
as many steps of as many completions; half of the layers by the same selection for both. Judged by the expected reward
on sums that were not trained on, which is the probability of the right answer and needs no sampling. Trainings are
kept in benchmarks/results/evidence/reinforcement.json and never run twice.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import multiprocessing
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layersift import FrozenPrefix, Selection, select_layers
from layersift.config.recipe import ModelSource
from layersift.files import read_json, write_text
from layersift.models.load import LoadedModel, load_model
from layersift.provenance import versions

RESULT = Path(__file__).resolve().parent / "results" / "evidence" / "reinforcement.json"
LARGEST, TEST_SUMS, SCORED = 30, 150, 64  # numbers up to; sums that are not trained on; rows that criteria read
PROMPTS, COMPLETIONS, STEPS = 6, 8, 20  # a step
ANSWER_TOKENS = 5  # that a completion may have
SHOT = "13 + 4 = 17\n"
PLACEMENTS = {"all": "all", "last": "last", "cka": "cka", "random": "random", "gradient": "gradient-norm"}
WAYS, SEEDS = ("grpo", "sft"), (0, 1, 2, 3)
RATES = (3e-4, 1e-3)  # of which one is chosen for each way, by the random half's rewards on other sums
TRIED = ("random", 7)  # with a seed that is not judged
RIGHT = re.compile(r" (\d+)\n")
Row = dict[str, str]


def sums() -> tuple[list[Row], list[Row], list[Row]]:
    """Those to train on, to choose a rate by, and to judge by; no pair of numbers is in two of them."""
    pairs = list(itertools.product(range(1, LARGEST + 1), repeat=2))
    random.Random(0).shuffle(pairs)
    rows = [{"prompt": f"{SHOT}{a} + {b} =", "completion": f" {a + b}\n"} for a, b in pairs]
    return rows[2 * TEST_SUMS :], rows[TEST_SUMS : 2 * TEST_SUMS], rows[:TEST_SUMS]


def rewards(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """1 for each that begins as the right completion, ``answer``, does: the sum and a new line."""
    found = [RIGHT.match(text) for text in completions]
    return [float(one is not None and one[0] == right) for one, right in zip(found, answer, strict=True)]


@torch.no_grad()
def expected_rewards(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[float]:
    """The probability that a row's completion is right: of the digits, and then of any token that ends the line."""
    ends = [i for token, i in tokenizer.get_vocab().items() if tokenizer.convert_tokens_to_string([token])[:1] == "\n"]
    found = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        digits = tokenizer(row["completion"].rstrip())["input_ids"]
        chances = model(torch.tensor([prompt + digits])).logits[0].float().log_softmax(-1)
        written = sum(float(chances[len(prompt) - 1 + i, digit]) for i, digit in enumerate(digits))
        found.append(math.exp(written + float(chances[-1, ends].logsumexp(0))))
    return found


def placed(model: Any, tokenizer: Any, placement: str) -> Selection:
    """The layers of a placement, chosen on the first sums with their right answers."""
    from datasets import Dataset

    rows = Dataset.from_list(sums()[0][:SCORED])
    if placement == "all":
        return select_layers(model, rows, tokenizer, ratio=1.0, criterion="last")
    return select_layers(model, rows, tokenizer, ratio=0.5, criterion=PLACEMENTS[placement])


def train(models: Path, way: str, placement: str, seed: int, rate: float, judged: str) -> dict[str, Any]:
    """One training; what it scores, and the rewards on the way."""
    torch.set_num_threads(1)
    trl: Any = importlib.import_module("trl")
    from datasets import Dataset
    from peft import LoraConfig

    loaded: LoadedModel = load_model(ModelSource(str(models / "SmolLM2.gguf")), "text")
    training, chosen_by, tested = sums()
    rows = {"test": tested, "validation": chosen_by}[judged]
    before = float(np.mean(expected_rewards(loaded.model, loaded.tokenizer, rows)))
    selection = placed(loaded.model, loaded.tokenizer, placement)
    adapted = selection.attach(loaded.model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), seed=seed)
    dataset = Dataset.from_list(training).shuffle(seed=seed)
    with tempfile.TemporaryDirectory() as place:
        common: dict[str, Any] = {
            "output_dir": place,
            "max_steps": STEPS,
            "learning_rate": rate,
            "per_device_train_batch_size": PROMPTS * COMPLETIONS,
            "seed": seed,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
        }
        if way == "grpo":
            more = {"num_generations": COMPLETIONS, "max_completion_length": ANSWER_TOKENS, "beta": 0.0}
            dataset = dataset.rename_column("completion", "answer")
            make = partial(trl.GRPOTrainer, reward_funcs=rewards, args=trl.GRPOConfig(**common, **more))
        else:
            make = partial(trl.SFTTrainer, args=trl.SFTConfig(**common, completion_only_loss=True))
        trainer = make(adapted, train_dataset=dataset, processing_class=loaded.tokenizer, callbacks=[FrozenPrefix()])
        began = time.perf_counter()
        trainer.train()
    adapted.eval()
    outcomes = expected_rewards(adapted, loaded.tokenizer, rows)
    return {
        "way": way,
        "placement": placement,
        "mask": selection.mask,
        "seed": seed,
        "rate": rate,
        "judged": judged,
        "before": before,
        "score": float(np.mean(outcomes)),
        "seconds": round(time.perf_counter() - began, 1),
        "rewards": [round(entry["reward"], 4) for entry in trainer.state.log_history if "reward" in entry],
        "outcomes": [round(outcome, 5) for outcome in outcomes],
    }


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a training from others."""
    return tuple(run[name] for name in ("way", "placement", "seed", "rate", "judged"))


class Kept:
    """The trainings that are done, in their file."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = read_json(RESULT, "trainings")["runs"] if RESULT.exists() else []

    def all_of(self, models: Path, wanted: Sequence[tuple[Any, ...]], jobs: int) -> list[dict[str, Any]]:
        """Those that are wanted; what is missing is trained."""
        missing = [one for one in wanted if one not in {identity(run) for run in self.runs}]
        if missing:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(jobs, len(missing)), context) as pool:
                for future in as_completed([pool.submit(train, models, *one) for one in missing]):
                    self.add(future.result())
        by = {identity(run): run for run in self.runs}
        return [by[one] for one in wanted]

    def add(self, run: dict[str, Any]) -> None:
        """Keep one more, a line each."""
        print({name: value for name, value in run.items() if name != "outcomes"}, flush=True)
        self.runs.append(run)
        lines = ",\n".join(json.dumps(one) for one in sorted(self.runs, key=lambda one: str(identity(one))))
        head = json.dumps({"versions": versions(), "steps": STEPS, "a_step": PROMPTS * COMPLETIONS})[:-1]
        write_text(RESULT, f'{head}, "runs": [\n{lines}\n]}}\n')


def end_workers(*_: object) -> None:
    """End with what was begun, when the script is told to end; a pool's workers would train on."""
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.exit(1)


def main() -> None:
    """Choose a rate for each way, and train every placement with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, end_workers)
    kept = Kept()
    rates = {}
    for way in WAYS:
        tried = kept.all_of(arguments.models, [(way, *TRIED, rate, "validation") for rate in RATES], arguments.jobs)
        rates[way] = max(tried, key=lambda run: run["score"])["rate"]
    each = itertools.product(SEEDS, WAYS, PLACEMENTS)
    wanted = [(way, placement, seed, rates[way], "test") for seed, way, placement in each]
    kept.all_of(arguments.models, wanted, arguments.jobs)


if __name__ == "__main__":
    main()
