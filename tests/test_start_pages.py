"""The pages of first steps and how-to work as they stand there, with tiny models in the place of MODEL."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from cli import layersift
from layersift.records.selection import Selection
from pictures import save_llava, save_vit
from tiny import tiny
from words import tokenizer

PAGES = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.slow


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / page).read_text(), re.S)


def carry_out(page, place, **models):
    """Every command of a page, in its order, with models by the names that they have there."""
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "layersift"
        result = layersift(*[models.get(word, word) for word in words[1:]], cwd=place)
        assert result.returncode == 0, f"{line}: {result.stderr}"


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_encoder(bert_directory, tmp_path):
    classes = ["billing", "delivery"]
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": classes[i % 2]} for i in range(24)]
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.jsonl", rows)
    write(tmp_path / "new.jsonl", [{"text": row["text"]} for row in rows])
    (recipe,) = blocks("start/encoder.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("MODEL", bert_directory))
    carry_out("start/encoder.md", tmp_path, MODEL=bert_directory)
    assert len((tmp_path / "preds.csv").read_text().splitlines()) == 25
    table = (tmp_path / "half-or-all" / "table.md").read_text()
    assert all(variant in table for variant in ("selected", "last", "random", "all", "base"))


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_with_trl(llama_directory, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    rows = [{"prompt": f"w{i} w{(i * 7) % 40}", "completion": f" w{i % 9} w3"} for i in range(24)]
    write(tmp_path / "rows.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("start/decoder.md", "python")
    names = {"MODEL": llama_directory, "DATA": "rows.jsonl", "OUTPUT": "out"}
    exec(snippet.replace('report_to="none"', 'report_to="none", use_cpu=True, bf16=False'), names)
    lowest = names["selection"].selected_layers[0]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert str(lowest) in str(config["target_modules"])
    served = layersift("export", "out", "--to", "serving", "-o", "served", cwd=tmp_path)
    assert served.returncode == 0, served.stderr


def test_images(tmp_path):
    save_vit(tmp_path / "vit")
    for name, colour in (("cats", (200, 30, 30)), ("dogs", (30, 30, 200))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.new("RGB", (20, 20), tuple(min(255, part + 5 * i) for part in colour))
            picture.save(tmp_path / "pictures" / name / f"{i}.png")
    asked = [
        {"image": f"pictures/{name}/{i}.png", "prompt": "w1 w2", "response": f"w{i} w3"}
        for name in ("cats", "dogs")
        for i in range(8)
    ]
    write(tmp_path / "questions.jsonl", asked)
    carry_out("start/vision.md", tmp_path, MODEL=str(tmp_path / "vit"), VLM=save_llava(tmp_path / "llava"))
    labels = [line.split(",")[1] for line in (tmp_path / "preds.csv").read_text().splitlines()[1:]]
    assert len(labels) == 16
    assert set(labels) <= {"cats", "dogs"}
    assert Selection.load(tmp_path / "vision.json").tower == "vision"
    adapted = load_file(tmp_path / "answering" / "adapter_model.safetensors")
    assert adapted
    assert all("language_model" in name for name in adapted)
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 17


def test_from_tickets_to_a_classifier(bert_directory, tmp_path, monkeypatch):
    for name in ("tickets", "dev", "test", "new"):
        lines = [f"w{i} w{(i * 7) % 40},{('billing', 'delivery')[i % 2]}" for i in range(30)]
        known = ["subject,team", *lines] if name != "new" else ["subject", *(line.split(",")[0] for line in lines)]
        (tmp_path / f"{name}.csv").write_text("\n".join(known) + "\n")
    carry_out("how-to/tickets.md", tmp_path, MODEL=bert_directory)
    predicted = (tmp_path / "teams.csv").read_text().splitlines()[1:]
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("how-to/tickets.md", "python")
    names = {}
    exec(snippet, names)
    (found,) = names["classifier"]("w0 w0")
    row, subject, label, probability = predicted[0].split(",")
    assert (row, subject, label) == ("1", "w0 w0", found["label"])
    assert float(probability) == pytest.approx(found["score"], abs=1e-4)


def test_a_model_that_is_large(llama_directory, tmp_path):
    pytest.importorskip("bitsandbytes")
    rows = [{"prompt": f"w{i} w{(i * 7) % 40}", "response": f"w{i % 9} w3"} for i in range(24)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])
    carry_out("how-to/large.md", tmp_path, MODEL=llama_directory)
    assert json.loads((tmp_path / "run" / "layersift.json").read_text())["source"]["quantization"] == "4bit"
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 25


@pytest.mark.filterwarnings("ignore")
def test_experts_encoder_decoders_and_what_is_ones_own(tmp_path, capsys):
    names = {"rows": [{"text": f"w{i} w{(i * 7) % 40} w3"} for i in range(24)], "tokenizer": tokenizer("decoder")}
    for name, model in (("MOE", "qwen3-moe"), ("T5", "t5")):
        tiny(model).save_pretrained(tmp_path / model)
        names[name] = str(tmp_path / model)
    experts, *others = blocks("how-to/architectures.md", "python")
    exec(experts, names)
    adapted = {
        tuple(name.split(".")[5:7])
        for name, parameter in names["adapted"].named_parameters()
        if parameter.requires_grad and int(name.split(".")[4]) in names["selection"].selected_layers
    }
    assert {("mlp", "experts"), ("self_attn", "q_proj"), ("self_attn", "v_proj")} == adapted
    for snippet in others:
        exec(snippet, names)
    assert "decoder" in capsys.readouterr().out
    assert {n.split(".")[3] for n, p in names["adapted"].named_parameters() if p.requires_grad} == {
        str(layer) for layer in names["found"].selected_layers
    }
