"""The public names: each documented, each found, and every example of the page works as it stands there."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

import layersift
from layersift import select_layers
from layersift.errors import LayersiftError
from layersift.step.prefix import plain_model
from tiny import tiny
from words import tokenizer

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
ROWS = [{"text": f"w{i % 9} w{3 * i % 40} w{i % 5}", "label": i % 2} for i in range(24)]


def test_every_public_name_is_found_documented_and_on_the_page():
    assert dir(layersift) == sorted(layersift.__all__)
    for name in layersift.__all__:
        value = getattr(layersift, name)
        assert re.search(rf"\b{name}\b", PAGE) or name == "__version__" or name in UNSAID, name
        if callable(value):
            assert (value.__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no attribute 'selecct_layers'"):
        layersift.selecct_layers  # noqa: B018


# What examples return; docs of the names above say so.
UNSAID = {"BlockStack", "Comparison", "Criterion", "Evaluation", "Measure", "Plan", "Representations", "RunRecord"} | {
    "TokenMeasure",
    "Undefined",
}


def test_importing_it_imports_nothing_heavy():
    code = "import sys, layersift; dir(layersift); print([m for m in ('torch', 'peft', 'msgspec') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_examples_work(tmp_path, monkeypatch, bert_directory):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    names = {"model": tiny("bert"), "tokenizer": tokenizer(), "dataset": ROWS}
    names |= {"MODEL": str(bert_directory), "DATA": "d.jsonl", "__name__": "example"}
    snippets = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(snippets) >= 7
    for snippet in snippets:
        exec(compile(snippet, "docs/api.md", "exec"), names)
    assert names["selection"].mask.count("1") == 2
    assert isinstance(names["peft_model"], PeftModel)
    assert names["half"].flops < names["whole"].flops
    assert len(names["states"]) == 5
    assert names["mine"].metric == "spread"
    assert names["record"].settings.rank == 4
    assert [row.choice.name for row in names["comparison"].rows][:2] == ["cka", "last"]


def test_the_signature_shows_every_setting_with_its_default():
    import inspect

    shown = inspect.signature(layersift.select_layers).parameters
    assert (shown["max_samples"].default, shown["ratio"].default, shown["seed"].default) == (128, None, 0)
    assert shown["max_length"].default == layersift.DataSettings.max_length
    assert "settings" not in shown


def test_a_setting_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(LayersiftError, match=r"select_layers: unknown setting 'top_m'; did you mean 'top_n'\?"):
        layersift.select_layers(tiny("bert"), ROWS, tokenizer(), top_m=2)


def test_the_library_is_silent_and_logs_what_it_does_otherwise(capfd, caplog, monkeypatch):
    from layersift.represent import read

    calls = []

    def short_of_memory(through, members, beginning, reader):
        calls.append(len(members))
        if len(members) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(through, members, beginning, reader)

    forward = read._forward
    monkeypatch.setattr(read, "_forward", short_of_memory)
    logging.getLogger("layersift").propagate = True
    with caplog.at_level(logging.INFO, logger="layersift"):
        layersift.select_layers(tiny("bert"), ROWS, tokenizer())
    assert calls[0] > 4
    assert any("batches are halved" in record.getMessage() for record in caplog.records)
    assert capfd.readouterr().out == ""


def test_samples_that_are_cut_are_logged(caplog):
    logging.getLogger("layersift").propagate = True
    with caplog.at_level(logging.INFO, logger="layersift"):
        layersift.select_layers(tiny("bert"), ROWS, tokenizer(), max_length=4)
    assert "24 of 24 samples cut to 4 tokens" in caplog.text


def test_a_compiled_model_is_read_and_adapted_as_the_one_inside():
    """Nothing is compiled here: the wrapper alone changes the modules' names."""
    model = tiny("llama")
    rows = [{"question": f"w{i} w{2 * i}", "answer": f"w{i}"} for i in range(16)]
    tok = tokenizer("decoder")
    compiled = torch.compile(model)
    found = select_layers(compiled, rows, tok, max_samples=16)
    assert found == select_layers(model, rows, tok, max_samples=16)
    peft_model = found.attach(compiled, LoraConfig(r=2))
    adapted = {name for name, module in peft_model.named_modules() if hasattr(module, "lora_A")}
    assert adapted
    assert all(name.startswith("base_model.model.model.layers.") for name in adapted)
    assert {int(name.split("layers.")[1].split(".")[0]) for name in adapted} == set(found.selected_layers)
    assert plain_model(torch.compile(peft_model)) is model
