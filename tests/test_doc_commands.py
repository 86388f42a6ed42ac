"""The commands and snippets of the other pages, each carried out in its order, with tiny models in the place of MODEL.

What would take too long is only tried (`--dry-run`, `--smoke`); what cannot be had here says why.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import transformers
from peft import LoraConfig

from layersift import select_layers
from tiny import tiny
from words import tokenizer

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# Pages whose blocks other tests carry out: test_start_pages, test_api, test_readme (the README's Python).
ELSEWHERE = {
    "docs/api.md",
    *(f"docs/start/{name}.md" for name in ("encoder", "decoder", "vision")),
    *(f"docs/how-to/{name}.md" for name in ("tickets", "large", "architectures")),
}
TRIED = {  # flags with which a command does all but train for hours, or send
    "layersift compare": ["--dry-run"],
    "layersift oracle": ["--dry-run"],
    "layersift sweep": ["--dry-run"],
    "layersift run recipes/": ["--smoke"],
    "layersift push": ["--dry-run", "-o", "copy"],
}
NOT_HERE = {
    "make ": "CI calls them",
    "layersift demo": "tests/test_real_models.py",
    "layersift benchmark": "tests/evaluation/test_harness.py",
    "python benchmarks/evidence_pages.py": "tests/test_evidence_pages.py",
    "python benchmarks/": "minutes to hours, and the data",
    "python -m lmms_eval": "gigabytes of CUDA packages and a Hub; the page says that it was not tried",
    "layersift sweep glue/": "the paper's own models are on the Hub; its recipes' smoke runs are tested",
    "layersift run figures/": "as above",
    "layersift run recipes/glue/": "as above",
}
RECIPE = {
    "model": "MODEL",
    "data": "train.jsonl",
    "output": "compared",
    "select": {"max_samples": 16},
    "train": {"epochs": 1, "batch_size": 8},
    "evaluate": "test.jsonl",
    "variants": ["selected", "last"],
}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def with_commands():
    names = [str(page.relative_to(ROOT)) for page in pages() if blocks(page.read_text(), "sh")]
    return [name for name in names if name not in ELSEWHERE]


def made(place, kind, directory):
    """The files that pages name, with rows for the kind of model."""
    for name in ("train", "dev", "test"):
        if kind == "encoder":
            rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": ("a", "b")[i % 2]} for i in range(40)]
        else:
            rows = [{"prompt": f"w{i} w{(i * 7) % 40}", "response": f"w{i % 9} w3"} for i in range(40)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = [{"id": i, "text": f"w{i} w3"} for i in range(9)]
    (place / "new.csv").write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in new))
    (place / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    (place / "recipe.yaml").write_text(json.dumps(RECIPE | {"model": directory}))
    (place / "config.yaml").write_text("base_model: org/model\nadapter: lora\nlora_r: 8\n")


@pytest.mark.parametrize("name", with_commands())
def test_every_command_of_a_page(name, bert_directory, llama_directory, call, tmp_path):
    decoder = name in ("docs/export.md", "docs/speed.md")
    directory = llama_directory if decoder else bert_directory
    made(tmp_path, "decoder" if decoder else "encoder", directory)
    lines = [line for text in blocks((ROOT / name).read_text(), "sh") for line in text.splitlines() if line.strip()]
    text = "\n".join(lines)
    if "selection.json" in text and "-o selection.json" not in text:  # what the page takes for done
        done = call("select", directory, "--data", "train.jsonl", "-o", "selection.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        needs_run = re.search(r"^layersift (evaluate|push|export) run\b", text, re.M)
        if needs_run and "-o run" not in text:
            words = ("train", directory, "--data", "train.jsonl", "--selection", "selection.json", "-o", "run")
            assert call(*words, cwd=tmp_path).returncode == 0
    carried_out = 0
    for line in lines:
        if any(line.startswith(start) for start in NOT_HERE):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] == "layersift", line
        more = next((flags for start, flags in TRIED.items() if line.startswith(start)), [])
        if "-o" in words:  # several commands of a page may name one output
            shutil.rmtree(tmp_path / words[words.index("-o") + 1], ignore_errors=True)
            (tmp_path / words[words.index("-o") + 1]).unlink(missing_ok=True)
        done = call(*[directory if word == "MODEL" else word for word in words[1:]], *more, cwd=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        carried_out += 1
    assert carried_out or all(any(line.startswith(start) for start in NOT_HERE) for line in lines)


class SFTTrainer:
    """In the place of TRL's, which a page only hints at: it keeps the callbacks."""

    def __init__(self, *rest, callbacks):
        self.callbacks = callbacks


@pytest.mark.parametrize("name", ["docs/speed.md", "docs/strategies.md", "docs/modules.md"])
def test_every_snippet_of_a_page(name):
    rows = [{"prompt": f"w{i} w{2 * i % 40}", "response": f"w{i % 9}"} for i in range(16)]
    names = {
        "model": tiny("llama"),
        "tokenizer": tokenizer("decoder", chat=True),
        "rows": rows,
        "select_layers": select_layers,
        "LoraConfig": LoraConfig,
        "SFTTrainer": SFTTrainer,
    }
    for snippet in blocks((ROOT / name).read_text(), "python"):
        exec(snippet, names)
    if "trainer" in names:
        assert all(isinstance(c, transformers.TrainerCallback) for c in names["trainer"].callbacks)
    else:
        assert names["peft_model"].peft_config["default"].rank_pattern


def test_no_page_has_commands_or_snippets_that_nothing_carries_out():
    here = {*with_commands(), "docs/speed.md", "docs/strategies.md", "docs/modules.md", "README.md"}
    for page in pages():
        name = str(page.relative_to(ROOT))
        if blocks(page.read_text(), "(?:sh|python|bash|console)"):
            assert name in here | ELSEWHERE, name
