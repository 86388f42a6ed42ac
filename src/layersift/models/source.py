"""Where a model's files lie, a .gguf file converted, which revision they are, and whether a checkpoint is whole."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig

from layersift.compat import commit_of
from layersift.config.recipe import ModelSource
from layersift.errors import ModelError, wrap_library_errors
from layersift.models.stacks import find_stacks


def locate(source: ModelSource) -> str:
    """What transformers is to load: a directory, or a Hub id as it was given.

    Raises:
        ModelError: no such file, or a directory without a model.
    """
    path = Path(source.name).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{source.name}: no config.json in this directory; {_suggest_instead(path)}")
        return str(path)
    if path.is_file():
        raise ModelError(f"{source.name}: expected a directory, a Hub id or a .gguf file")
    if path.suffix.lower() == ".gguf" or source.name.startswith((".", "/", "~")) or source.name.count("/") > 1:
        raise ModelError(f"{source.name}: no such file or directory")
    return source.name


def _suggest_instead(directory: Path) -> str:
    """What to give instead of a directory without a model in it."""
    if (directory / "adapter_config.json").is_file():
        base = None
        with suppress(ValueError, OSError, AttributeError):
            base = json.loads((directory / "adapter_config.json").read_text()).get("base_model_name_or_path")
        return f"it holds adapters: give their base model{f', {base}' if base else ''}, or the merged one"
    if within := sorted(file.parent.name for file in directory.glob("*/config.json")):
        return f"give the model within it, {directory.name}/{within[0]}"
    return "expected a saved transformers model"


GGUF_REMEDY = "a whole model of a known architecture is needed: no shard of one, and no tensor may be missing"


def cache_directory() -> Path:
    """Where converted .gguf files are kept: $LAYERSIFT_CACHE, or layersift in the user's cache directory."""
    if named := os.environ.get("LAYERSIFT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layersift"


def convert_gguf(path: Path) -> Path:
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


PART = 1 << 22
OF_FILES = ("weights:", "sha256:")  # what revisions of models on a disk begin with


def fingerprint(directory: Path) -> str:
    """A hash of a model's configuration and all of its weights."""
    digest = hashlib.sha256()
    for file in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return f"weights:{digest.hexdigest()[:20]}"


def matches_record(directory: Path, recorded: str) -> bool:
    """Whether a directory holds the model of a recorded fingerprint, written by this version or an earlier one."""
    return recorded == (_ends(directory) if recorded.startswith("sha256:") else fingerprint(directory))


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read again where its size or its time has changed."""
    state = file.stat()
    return _digest(file.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while part := data.read(PART):
            digest.update(part)
    return digest.hexdigest()


def _ends(directory: Path) -> str:
    """The hash in records of schema 1: of the weights, only a mebibyte at each end of a file."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(1 << 20))
            data.seek(max(0, size - (1 << 20)))
            digest.update(data.read())
    return f"sha256:{digest.hexdigest()[:20]}"


log = logging.getLogger(__name__)


def is_revision(source: ModelSource, loaded: str, recorded: str) -> bool:
    """Whether a model that was found to be of one revision is that of a recorded one: of files, those that were loaded.

    A run that was trained on a directory and pushed with the base's Hub id is so judged by what the Hub gave.
    """
    path = Path(locate(source))
    if path.is_dir() or recorded.startswith(OF_FILES):
        place = files_of(source)
        return place is not None and matches_record(place, recorded)
    if recorded == (source.revision or "main"):
        log.warning("which commit of %r it was made with has not been recorded; it may be another one now", source.name)
        return True
    return loaded == recorded


def revision_of(source: ModelSource, config: Any) -> str:
    """The Hub's commit, or for local files a hash of what they hold."""
    path = Path(locate(source))
    if path.is_dir():
        return fingerprint(path)
    snapshot = _snapshot(source)
    return snapshot.name if snapshot else commit_of(config) or source.revision or "main"


def files_of(source: ModelSource) -> Path | None:
    """Where a model's files lie: its own directory, or what the Hub's cache has of it; None where that is nothing."""
    path = Path(locate(source))
    return path if path.is_dir() else _snapshot(source)


def _snapshot(source: ModelSource) -> Path | None:
    """Where the Hub's files lie, in a directory that is named by their commit; None where they are not in its cache.

    Configurations do not carry the commit any more, from some version of transformers 5 on.
    """
    given = try_to_load_from_cache(source.name, "config.json", revision=source.revision)
    return Path(given).parent if isinstance(given, str) else None


MOST_LAYERS = 10_000  # no model has so many; building them would only fill the memory


def require_sound_config(config: Any, name: str) -> None:
    """Refuse what transformers would pass over in silence, or would build until memory ends.

    Raises:
        ModelError: more layers than any model has, architectures that are no names of model classes, or a quantization
            that transformers does not know.
    """
    for part in (config, *vars(config).values()):
        if isinstance(part, PretrainedConfig):
            for key, value in vars(part).items():
                if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
                    raise ModelError(f"{name!r}: config.json says {key} {value}; no model has so many layers")
    architectures = getattr(config, "architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise ModelError(f"{name!r}: architectures in config.json is {architectures!r}; a list of class names is right")
    for architecture in architectures[:1]:
        named = getattr(transformers, architecture, None)
        if named is not None and not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)):
            raise ModelError(f"{name!r}: config.json names {architecture!r} as its architecture, which is no model")
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict):
        with wrap_library_errors(
            ModelError,
            f"{name!r}: its quantization cannot be read",
            "quantization_config in its config.json is to be as save_pretrained writes it",
        ):
            from transformers.quantizers import AutoHfQuantizer  # takes a second to import

            if not AutoHfQuantizer.supports_quant_method(quantization):
                raise ModelError(
                    f"{name!r}: transformers does not know its quantization, {quantization['quant_method']!r}, and "
                    "would read the numbers as they are"
                )


def require_complete(model: nn.Module, report: Any, name: str, new_head: bool) -> None:
    """A head may be new; anything else with random weights would be ranked and trained without anyone noticing.

    A pooler may be missing, too, as in checkpoints of masked language models; that is logged.

    Args:
        report: what transformers says of loading it.
        new_head: whether the task brings a head.

    Raises:
        ModelError: the checkpoint lacks something else.
    """
    missing = {str(key) for key in report["missing_keys"]} | {str(key[0]) for key in report["mismatched_keys"]}
    pooler = {key for key in missing if ".pooler." in f".{key}"}
    lacking = missing - pooler
    if new_head:
        below = _below_the_head(model)
        lacking = {key for key in lacking if key.startswith(below)}
    if lacking:
        raise ModelError(
            f"{name!r} lacks weights for {len(lacking)} parameters, such as {min(lacking)}; only a new head may be "
            "missing"
        )
    if pooler:
        log.warning("%s: the checkpoint has no %s; it is new", name, min(pooler).rpartition(".")[0])


def _below_the_head(model: nn.Module) -> tuple[str, ...]:
    """How the names begin of what holds the blocks or the embeddings."""
    names = {stack.path for stack in find_stacks(model)}
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        names |= {name for name, module in model.named_modules() if module is embeddings}
    return tuple(f"{name.partition('.')[0]}." for name in names)


def require_finite_weights(module: nn.Module, model: str, prefix: str = "") -> None:
    """Refuse a model, or a block of one, that holds something else than numbers.

    What is kept on disk until it runs is not looked at.

    Args:
        model: what the message calls it.
        prefix: of the weights' names, where ``module`` is a part of it.

    Raises:
        ModelError: a weight is NaN or infinite; the message names it.
    """
    key = first_not_finite(module.named_parameters())
    if key is not None:
        raise ModelError(
            f"{model}: the weights {prefix}{key} hold NaN or infinity; nothing from there on would mean anything"
        )


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; those on the meta device hold nothing."""
    for name, value in named:
        if value.is_floating_point() and value.device.type != "meta" and not bool(torch.isfinite(value).all()):
            return name
    return None


def require_finite_files(directory: Path, name: str) -> None:
    """Refuse weights that are no numbers where they are packed as they are loaded, which hides it.

    Raises:
        ModelError: a tensor of a safetensors file is NaN or infinite; the message names it.
    """
    for path in sorted(directory.glob("*.safetensors")):
        with (
            wrap_library_errors(ModelError, f"{path}: cannot be read", "fetch or save the model again"),
            safe_open(path, "pt") as file,
        ):
            tensors = ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118  # no mapping
            key = first_not_finite(tensors)
        if key is not None:
            raise ModelError(
                f"{name!r}: the weights {key} hold NaN or infinity; nothing from there on would mean anything"
            )
