"""The pages that one begins with work as they stand there, with a tiny model in the place of MODEL."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from cli import layersift
from pictures import save_vit

PAGES = Path(__file__).parents[1] / "docs" / "start"
pytestmark = pytest.mark.slow


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / page).read_text(), re.S)


def carry_out(page, place, model):
    """Every command of a page, in its order."""
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "layersift"
        result = layersift(*[model if word == "MODEL" else word for word in words[1:]], cwd=place)
        assert result.returncode == 0, f"{line}: {result.stderr}"


def test_an_encoder(bert_directory, tmp_path):
    classes = ["billing", "delivery"]
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": classes[i % 2]} for i in range(24)]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    (recipe,) = blocks("encoder.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("MODEL", bert_directory))
    carry_out("encoder.md", tmp_path, bert_directory)
    assert len((tmp_path / "preds.csv").read_text().splitlines()) == 25
    table = (tmp_path / "half-or-all" / "table.md").read_text()
    assert all(arm in table for arm in ("selected", "last", "random", "all", "untouched"))


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_with_trl(llama_directory, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    rows = [{"prompt": f"w{i} w{(i * 7) % 40}", "completion": f" w{i % 9} w3"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("decoder.md", "python")
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
    carry_out("vision.md", tmp_path, str(tmp_path / "vit"))
    labels = [line.split(",")[1] for line in (tmp_path / "preds.csv").read_text().splitlines()[1:]]
    assert len(labels) == 16
    assert set(labels) <= {"cats", "dogs"}
