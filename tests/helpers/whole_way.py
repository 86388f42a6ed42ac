"""Every text architecture along the whole way, tiny and random: selected, attached, trained, saved, loaded, merged.

    python tests/helpers/whole_way.py > found.jsonl            # about twenty minutes; or with names of model types
    python tests/helpers/whole_way.py --page found.jsonl       # writes docs/architectures-whole-way.md

Each architecture is tried in a process of its own, since some of them end theirs.
"""

import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

STEPS = ("cka", "fisher", "spectrum", "attach and train", "load", "alone = batch", "merge")
SECONDS = 90
LARGEST = 5_000_000  # parameters
PAGE = Path(__file__).parents[2] / "docs" / "architectures-whole-way.md"


def try_type(model_type, kind, say):
    """Go the whole way with one architecture; ``say(step, outcome)`` after each step, "" where it is right."""
    with tempfile.TemporaryDirectory() as place:
        _try_type(model_type, kind, say, Path(place))


def _try_type(model_type, kind, say, place):
    import torch

    from layersift.api import train
    from layersift.config.recipe import DataSettings, ModelSource
    from layersift.config.select import SelectSettings
    from layersift.config.train import TrainSettings
    from layersift.evaluation.load_run import load_run
    from layersift.models.load import load_model
    from layersift.select.choose import select
    from layersift.select.sample import sample_table
    from layersift.task import Task
    from tiny_types import tiny_model
    from words import tokenizer

    torch.set_num_threads(1)
    model = tiny_model(model_type, kind)
    size = sum(p.numel() for p in model.parameters())
    assert size < LARGEST, f"{size:,} parameters at the smallest size that its config leaves"
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(place / "model")
    tokenizer("encoder" if kind == "classification" else "decoder").save_pretrained(place / "model")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    source, data = ModelSource(str(place / "model")), DataSettings(str(place / "rows.jsonl"))
    task = Task.open(source, data)
    table = task.table
    loaded = load_model(source, table.kind, 2)
    encoder = task.encoder
    assert encoder.seq2seq == (kind == "seq2seq")
    say("built", "")
    chosen = None
    for criterion in ("cka", "fisher", "spectrum"):
        with Telling(say, criterion):
            settings = SelectSettings(criterion=criterion, max_samples=16)
            found = select(loaded, sample_table(table, encoder, settings), settings)
            missing = [i for i, value in enumerate(found.importance) if value is None]
            assert not missing, f"no score: layer {missing[0]}, {found.undefined[missing[0]]}"
            zero = [i for i, value in enumerate(found.importance) if value == 0]
            assert not zero or criterion == "spectrum", f"layer {zero[0]} scores exactly 0"
            chosen = chosen or found
    if chosen is None:
        return
    settings = TrainSettings(rank=2, epochs=2, batch_size=8, max_samples=8, prefix_dropout=False)
    with Telling(say, "attach and train"):
        train(source, data, chosen, place / "run", settings, merge=True)
    if not (place / "run").exists():
        return
    adapted = None
    with Telling(say, "load"):
        _, adapted, encoder = load_run(place / "run")
    if adapted is None:
        return
    examples = [encoder.encode(table, index)[0] for index in range(8)]
    together = answers(adapted, encoder, examples)
    with Telling(say, "alone = batch"):
        alone = [answers(adapted, encoder, [example])[0] for example in examples]
        assert close(together, alone), f"off by {distance(together, alone):.1e}"
    with Telling(say, "merge"):
        plain = load_model(ModelSource(str(place / "run" / "merged")), table.kind, 2)
        merged = answers(plain, encoder, examples)
        assert close(together, merged), f"off by {distance(together, merged):.1e}"


def rows(kind):
    """Two classes by the first word, or answers that repeat it; of different lengths."""
    texts = [" ".join(f"w{(3 * i + 7 * j) % 40}" for j in range(3 + i % 9)) for i in range(16)]
    if kind == "classification":
        return [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    return [{"prompt": text, "response": " ".join(text.split()[:2])} for text in texts]


class Telling:
    """What goes wrong inside is told, and what does not too."""

    def __init__(self, say, step):
        self.say, self.step = say, step

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        said = "" if error is None else f"{kind.__name__}: {' '.join(str(error).split())[:160]}"
        self.say(self.step, said)
        return error is None or issubclass(kind, Exception)


def answers(loaded, encoder, examples):
    """What the model says of each example: its loss, or its logits."""
    import torch

    from layersift.data.examples import independent_batches, labelled_batch
    from layersift.evaluation.metrics import _losses

    found = [None] * len(examples)
    with torch.no_grad():
        lengths = [len(example) for example in examples]
        for batch in independent_batches(loaded.model, examples, lengths, 1 << 12, loaded.pad_id):
            inputs = labelled_batch([examples[i] for i in batch], loaded.pad_id, encoder.kind)
            if encoder.kind == "classification":
                del inputs["labels"]
                said = loaded.model(**inputs).logits.tolist()
            else:
                said = _losses(loaded.model, inputs, encoder.seq2seq)[0].tolist()
            for index, value in zip(batch, said, strict=True):
                found[index] = value
    return found


def distance(a, b):
    import torch

    return float((torch.tensor(a) - torch.tensor(b)).abs().max())


def close(a, b):
    return distance(a, b) <= 2e-4 * max(
        1.0, max(abs(v) for row in a for v in (row if isinstance(row, list) else [row]))
    )


def in_a_process_of_its_own(model_type, kind, attempt=try_type, seconds=SECONDS):
    """What ``attempt`` says by step; a step that was not reached is missing."""
    from layersift.progress import quieten_libraries

    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        quieten_libraries()

        def say(step, outcome):
            os.write(writes, (json.dumps([step, outcome]) + "\n").encode())

        try:
            attempt(model_type, kind, say)
        except BaseException as error:
            say("stopped", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        found = dict(map(json.loads, pipe))
    status = os.waitpid(child, 0)[1]
    if status and "stopped" not in found:
        found["stopped"] = f"ended by signal {status & 127} (14: after {seconds} s)"
    return found


HEAD = """# The whole way

Every text architecture that transformers {version} registers for classification or writing ({tried}), at its smallest
size, with random weights: **selected** by CKA, Fisher information and the weights' spectrum; LoRA **attached** by
default targets and **trained** four steps with the frozen prefix and its cache; **loaded** again; the **same answers
alone and in a batch**; and the same with its adapters **merged**. {built} could be built small, and {claimed} claim it.
A configuration that this generic shrinking leaves contradictory is no claim. **{right} of those, {share:.1%}, are right
in every column.** The reasons of the others stand below. Made by `python tests/helpers/whole_way.py`, torch {torch},
PEFT {peft}, 2 CPU cores; `tests/test_whole_way.py` holds a choice of them.

| model type | task | {columns} |
| --- | --- | {lines} |
"""


def page(found):
    """The documentation's text, of what was found by type."""
    from importlib.metadata import version

    built = [each for each in found if "built" in each]
    claimed = [each for each in built if not any(reason in str(each) for reason in CONTRADICTORY)]
    right = [each for each in claimed if all(each.get(step) == "" for step in STEPS)]
    text = HEAD.format(
        version=version("transformers"),
        torch=version("torch"),
        peft=version("peft"),
        tried=len(found),
        built=len(built),
        claimed=len(claimed),
        right=len(right),
        share=len(right) / len(claimed),
        columns=" | ".join(STEPS),
        lines=" | ".join("---" for _ in STEPS),
    )
    for each in claimed:
        marks = ["yes" if each.get(step) == "" else "no" if each.get(step) else "-" for step in STEPS]
        text += f"| {each['type']} | {each['kind']} | {' | '.join(marks)} |\n"
    text += "\n## Not right\n\n| model type | why |\n| --- | --- |\n"
    for each in claimed:
        if each not in right:
            text += f"| {each['type']} | {reason_of(each)} |\n"
    text += "\n## Not tried\n\nThey could not be built small, or not without contradiction.\n\n"
    text += "| model type | why |\n| --- | --- |\n"
    for each in found:
        if each not in claimed:
            text += f"| {each['type']} | {reason_of(each)} |\n"
    return text


# What says that the shrunk configuration contradicts itself, or that a choice is missing, not that something fails.
CONTRADICTORY = (
    "must match the size of tensor",
    "shapes cannot be multiplied",
    "to match target batch_size",
    "no sample leaves room for a response",  # the tokenizer made here is not read as this type's own
    "Please call `XmodPreTrainedModel.set_default_language()`",
    "name one with --tower",  # several stacks, of which the user has to choose one
)


def reason_of(each):
    """The first thing that went wrong, without the directory that it was tried in."""
    said = next((each[step] for step in (*STEPS, "stopped") if each.get(step)), "")
    said = re.sub(r"/tmp/tmp\w+/", "", said).replace("|", "/").replace("<", "&lt;")
    return said[:160]


def main():
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    if sys.argv[1:2] == ["--page"]:
        lines = Path(sys.argv[2]).read_text().splitlines()
        PAGE.write_text(page(list({each["type"]: each for each in map(json.loads, lines)}.values())))
        return
    import layersift.api  # noqa: F401 - so that every child has it
    from tiny_types import kinds

    wanted = sys.argv[1:]
    for model_type, kind in kinds().items():
        if wanted and model_type not in wanted:
            continue
        began = time.time()
        found = in_a_process_of_its_own(model_type, kind)
        line = {"type": model_type, "kind": kind, "seconds": round(time.time() - began, 1), **found}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
