"""An adapter's directory as every server reads it: its modules by their full names, and nothing that they refuse."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from layersift.adapt.store import ADAPTER_FILE, CONFIG_FILE, canonical
from layersift.errors import AdapterError, wrap_library_errors
from layersift.files import new_directory, read_json, write_json

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(lora_A|lora_B)\.weight")
WITHOUT_LAYERS = dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
TEXT_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
)


def for_serving(adapter: Path, output: Path) -> tuple[str, ...]:
    """Copy a LoRA adapter to ``output``, its config naming the modules that its weights are of, in full and sorted.

    SGLang refuses a regex there, mlx and llama.cpp read the weights' names.

    Returns:
        The modules.

    Raises:
        AdapterError: no LoRA adapter of PEFT, or one with what servers refuse: DoRA, a head, stacked experts.
    """
    with new_directory(output, "export") as place:
        config = read_json(adapter / CONFIG_FILE, "the adapter_config.json of a PEFT adapter")
        modules = served_modules(adapter, config)
        config |= {"target_modules": list(modules)} | {k: v for k, v in WITHOUT_LAYERS.items() if k in config}
        shutil.copy(adapter / ADAPTER_FILE, place / ADAPTER_FILE)
        for pattern in TEXT_FILES:
            for file in adapter.glob(pattern):
                shutil.copy(file, place / file.name)
        write_json(place / CONFIG_FILE, canonical(config))
    return modules


def served_modules(adapter: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The modules that an adapter's weights are of.

    Raises:
        AdapterError: see :func:`for_serving`.
    """
    merge = "merge it into its model instead (layersift train --merge)"
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{adapter}: an adapter of type {config.get('peft_type')}; servers read LORA; {merge}")
    if config.get("use_dora"):
        raise AdapterError(f"{adapter}: DoRA, which vLLM and others refuse; {merge}")
    if saved := config.get("modules_to_save"):
        raise AdapterError(f"{adapter}: it holds whole modules ({', '.join(saved)}), which vLLM refuses; {merge}")
    with (
        wrap_library_errors(AdapterError, f"{adapter / ADAPTER_FILE}: cannot be read", "copy the whole run again"),
        safe_open(adapter / ADAPTER_FILE, "pt") as f,
    ):
        names = list(f.keys())
    modules = {match["module"] for match in map(_KEY.fullmatch, names) if match}
    others = [name for name in names if not _KEY.fullmatch(name)]
    if others or config.get("target_parameters"):
        what = others[0] if others else str(config["target_parameters"])
        raise AdapterError(f"{adapter}: {what} is no pair of LoRA matrices of a module; {merge}")
    return tuple(sorted(modules))
