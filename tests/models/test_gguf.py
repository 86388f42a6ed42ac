"""Models in .gguf files; what real ones hold is tested with SmolLM2 where it is installed."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import transformers

from layersift.models.source import convert_gguf, file_digest
from tiny import tiny


def test_several_that_want_one_file_at_once_convert_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERSIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("layersift.models.source._has_gguf", lambda: True)
    (tmp_path / "model.gguf").write_bytes(b"a model")
    begun, together = [], threading.Barrier(3)

    def slowly(**where):
        begun.append(where["gguf_file"])
        time.sleep(0.3)
        return tiny("llama")

    class Tokenizer:
        def save_pretrained(self, directory):
            (directory / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", slowly)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda **where: Tokenizer())

    def converted(_):
        together.wait()
        return convert_gguf(tmp_path / "model.gguf")

    with ThreadPoolExecutor(3) as pool:
        places = set(pool.map(converted, range(3)))
    assert begun == ["model.gguf"]
    (place,) = places
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in place.iterdir()}
    assert list(place.parent.iterdir()) == [place]  # no lock, nothing half made


def test_inspect_names_the_directory_that_other_libraries_take(tmp_path, monkeypatch, call, llama_directory):
    monkeypatch.setenv("LAYERSIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"a model")
    unpacked = tmp_path / "cache" / "gguf" / file_digest(tmp_path / "model.gguf")[:20]
    shutil.copytree(llama_directory, unpacked)
    assert str(unpacked) in call("inspect", "model.gguf", cwd=tmp_path).stdout
    assert json.loads(call("inspect", "model.gguf", "--json", cwd=tmp_path).stdout)["directory"] == str(unpacked)
    transformers.AutoModelForCausalLM.from_pretrained(unpacked)
