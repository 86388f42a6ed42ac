"""Models in .gguf files: unpacked once into safetensors, and kept."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from filelock import FileLock

from layersift.errors import ModelError, wrap_library_errors
from layersift.load.identity import file_digest

GGUF_REMEDY = "a whole model of a known architecture is needed: no shard of one, and no tensor may be missing"


def cache_directory() -> Path:
    """Where converted .gguf files are kept: $LAYERSIFT_CACHE, or layersift in the user's cache directory."""
    if named := os.environ.get("LAYERSIFT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layersift"


def converted_gguf(path: Path) -> Path:
    """The directory that holds ``path`` as safetensors with its tokenizer; made on first use, in one move.

    Of several processes that want it one makes it, and the others wait.

    Raises:
        ModelError: it cannot be read as a whole model, or the package gguf is not there.
    """
    target = cache_directory() / "gguf" / file_digest(path)[:20]
    if target.exists():
        return target
    if not _has_gguf():
        raise ModelError(f"{path}: reading .gguf files needs the package gguf (pip install 'layersift[gguf]')")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_suffix(".lock")
    with FileLock(lock):
        try:
            if not target.exists():
                _convert(path, target)
        finally:
            with suppress(OSError):  # a file that cannot be read leaves nothing behind, not even this
                lock.unlink()
    return target


def _convert(path: Path, target: Path) -> None:
    working = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting."))
    try:
        with wrap_library_errors(ModelError, f"{path}: not a .gguf file that transformers can read", GGUF_REMEDY):
            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
            model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            # The weights are ordinary numbers by now; what is left of the quantizer only forbids saving them.
            model.hf_quantizer = None
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(working)
            transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(working)
            if not target.exists():  # another may have come between a lock's end and its file's
                working.rename(target)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _has_gguf() -> bool:
    return importlib.util.find_spec("gguf") is not None
