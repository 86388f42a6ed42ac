"""Load a model and its tokenizer from a local directory, a Hub id or a .gguf file; quantised where asked."""

from __future__ import annotations

import atexit
import copy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from layersift.compat import builds_from_config, has_class_for, unconverted_modules
from layersift.config.recipe import ModelSource, TaskKind
from layersift.errors import ModelError, wrap_library_errors
from layersift.models.source import (
    files_of,
    locate,
    require_complete,
    require_finite_files,
    require_finite_weights,
    require_sound_config,
    revision_of,
)
from layersift.models.stacks import embedded_tokens, find_stacks, is_encoder_decoder


def require_quantizer(source: ModelSource) -> None:
    """Refuse a quantization for which the library is missing.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if source.quantization is not None and find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {source.quantization!r} needs bitsandbytes (pip install bitsandbytes)")


def quantization_arguments(
    source: ModelSource, config: Any, device: torch.device, empty: Callable[[], nn.Module]
) -> dict[str, Any]:
    """How transformers is to load the base: in 4 bits (NF4, as QLoRA), in 8, or as its files hold it.

    What is not quantised, heads and norms, has the dtype of the source.

    Args:
        empty: builds the model on the meta device.
    """
    own = getattr(config, "quantization_config", None)
    if source.quantization is None:
        return {} if own is None else {"device_map": {"": device}}
    if own is not None:
        raise ModelError(f"{source.name!r} is quantised already; leave --quantization away")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=source.quantization == "4bit",
        load_in_8bit=source.quantization == "8bit",
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=find_unquantized(empty()),  # of 4 bits, too
        bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def find_unquantized(model: nn.Module) -> list[str]:
    """Names of the modules that are not quantised: heads, and in a model that writes nothing all beside its blocks.

    transformers itself leaves alone what writes words. A classifier it takes for any other matrix; a new one, or a new
    pooler, has no weights in the files that could be packed, and what is packed cannot be trained.
    """
    left = set(unconverted_modules(model))
    if cast(Any, model).get_output_embeddings() is None:
        blocks = tuple(f"{stack.path}." for stack in find_stacks(model))
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        left |= {name for name in linear if not name.startswith(blocks)}
    return sorted(left)


def is_quantized(model: nn.Module) -> bool:
    """Whether the model's own weights are held in fewer bits than they compute in."""
    return getattr(model, "hf_quantizer", None) is not None


@contextmanager
def keep_weights_packed(model: nn.Module) -> Iterator[None]:
    """While active, bitsandbytes leaves 4-bit weights as they were packed.

    On processors with AVX512-BF16 its layers pack them anew at the first pass in evaluation mode: with scales rounded
    to bfloat16, and so that later passes, those of training too, hand no gradient on to what lies below (0.50).
    """
    flag = "support_avx512bf16_for_cpu"
    held = [(module, getattr(module, flag)) for module in model.modules() if hasattr(module, flag)]
    for module, _ in held:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for module, before in held:
            setattr(module, flag, before)


def base_bytes(model: nn.Module, quantization: str | None) -> int:
    """Bytes of a model's parameters when it is loaded so; ``model`` may be on the meta device.

    What is not quantised is of the model's own type.
    """
    width = next(model.parameters()).element_size()
    if quantization is None:
        return width * sum(p.numel() for p in model.parameters())
    left = find_unquantized(model)
    packed = {
        id(module.weight): module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(name == key or name.endswith(f".{key}") for key in left)
    }
    plain = sum(p.numel() for p in model.parameters() if id(p) not in packed)
    return width * plain + sum(_packed_bytes(weight, quantization) for weight in packed.values())


def _packed_bytes(weight: torch.Tensor, quantization: str) -> int:
    """Bytes of the numbers, and of a scale for each 64 of them (NF4) or for each row (int8)."""
    if quantization == "4bit":
        return -(-weight.numel() // 2) + 4 * -(-weight.numel() // 64)
    return weight.numel() + 4 * weight.shape[0]


UNKNOWN = "unknown"  # the revision of a model that was made or loaded by the caller
FEWEST_WORDS = 2  # of a vocabulary, special tokens aside


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, what reads its inputs, and the identity of what was loaded."""

    model: Any  # a transformers model
    tokenizer: Any  # None where it reads images alone
    source: ModelSource
    revision: str
    processor: Any = None  # of images; None where it reads text alone

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self.source.name

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads and a decoder writes."""
        return is_encoder_decoder(self.model)

    @property
    def pad_id(self) -> int:
        """Token that fills up shorter samples; always masked."""
        return pad_id(self.model, self.tokenizer)


def pad_id(model: nn.Module, tokenizer: Any) -> int:
    """The padding token: the tokenizer's, else the model's, else the end-of-text token, else 0.

    One that the model has no embedding for, as where a token was added to the tokenizer alone, is passed over: padding
    is masked, and any token serves.
    """
    config = getattr(model, "config", None)
    candidates = (getattr(tokenizer, "pad_token_id", None), getattr(config, "pad_token_id", None))
    rows = embedded_tokens(model) or sys.maxsize
    named = (c for c in (*candidates, getattr(tokenizer, "eos_token_id", None)) if c is not None)
    return next((int(c) for c in named if 0 <= int(c) < rows), 0)


def load_config(source: ModelSource) -> Any:
    """The model's configuration.

    Raises:
        ModelError: it cannot be found or read.
    """
    require_quantizer(source)
    where = locate(source)
    here = "" if Path(where).is_dir() else ": no such directory here, nor a model that the Hub gave"
    with wrap_library_errors(
        ModelError,
        f"cannot read the model {source.name!r}{here}",
        "a directory with a config.json, a .gguf file or an id of the Hub is needed",
    ):
        config = transformers.AutoConfig.from_pretrained(
            where, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    require_sound_config(config, source.name)
    return config


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: there is none, or one that transformers made up without its files.
    """
    tokenizer = _load_reader(transformers.AutoTokenizer, "tokenizer", source)
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or longest < 1:
        raise ModelError(
            f"{source.name!r}: model_max_length in tokenizer_config.json is {longest!r}; a number is right"
        )
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < FEWEST_WORDS:
        raise ModelError(
            f"{source.name!r} has no vocabulary, only special tokens; its tokenizer's files (tokenizer.json, say) are "
            "missing"
        )
    return tokenizer


def load_readers(source: ModelSource, kind: TaskKind, images: bool) -> tuple[Any, Any]:
    """Tokenizer and processor of images for a kind of task; None for what it has no use for.

    Raises:
        ModelError: one is missing, or cannot be used.
    """
    if not images:
        return load_tokenizer(source), None
    if kind != "instruction":
        return None, _load_reader(transformers.AutoImageProcessor, "image processor", source)
    processor = _load_reader(transformers.AutoProcessor, "processor", source)
    if not hasattr(processor, "image_processor"):
        raise ModelError(f"{source.name!r} has no processor of images; it reads text alone")
    return processor.tokenizer, processor


def _load_reader(auto: Any, what: str, source: ModelSource) -> Any:
    with wrap_library_errors(
        ModelError,
        f"cannot read the {what} of {source.name!r}",
        "its files are needed beside config.json, as save_pretrained writes them",
    ):
        return auto.from_pretrained(
            locate(source), revision=source.revision, trust_remote_code=source.trust_remote_code
        )


# Of text and of images; no architecture has both.
WITH_HEAD = (transformers.AutoModelForSequenceClassification, transformers.AutoModelForImageClassification)


def _model_class(config: Any, kind: TaskKind | None) -> Any:
    """The class to load: a classification head where the task needs one, otherwise what the checkpoint was saved as."""
    if kind in ("classification", "regression"):
        for with_head in WITH_HEAD:
            if has_class_for(with_head, config):
                return with_head
    architecture = next(iter(getattr(config, "architectures", None) or []), "")
    if hasattr(transformers, architecture):
        return getattr(transformers, architecture)
    return transformers.AutoModelForCausalLM if architecture.endswith("ForCausalLM") else transformers.AutoModel


def empty_model(source: ModelSource, kind: TaskKind | None = None, num_labels: int | None = None) -> Any:
    """The model on the meta device, as saved or as a kind of task loads it: enough to see its blocks and to plan.

    Its parameters are of the type that they will have when it is loaded here, quantization apart. A head has
    ``num_labels`` outputs, where these are given.

    Raises:
        ModelError: the configuration cannot be found, or its class cannot be built.
    """
    config = load_config(source)
    if num_labels is not None and kind in ("classification", "regression"):
        config = copy.deepcopy(config)
        config.num_labels = num_labels
    cls = _model_class(config, kind)
    with (
        wrap_library_errors(
            ModelError,
            f"cannot build the model {source.name!r} from its config.json",
            "see what that says of sizes and layers, or fetch it again",
        ),
        torch.device("meta"),
    ):
        if builds_from_config(cls):
            model = cls.from_config(config, trust_remote_code=source.trust_remote_code)
        else:
            model = cls(config)
    dtype = _dtype_to_be(source, config)
    for parameter in model.parameters():  # buffers stay as they are, as they do when it is loaded
        parameter.data = parameter.data.to(dtype)
    return model


def device_of(source: ModelSource) -> torch.device:
    if source.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with wrap_library_errors(
        ModelError, f"device {source.device!r} is not there", "give --device cpu, or leave it away"
    ):
        device = torch.device(source.device)
        torch.empty(1, device=device)
    return device


def _dtype(source: ModelSource, on_cpu: bool) -> Any:
    if source.dtype is None:
        # Numbers of another type than the files' could not stay in them.
        return torch.float32 if on_cpu and not source.stream else "auto"
    return getattr(torch, source.dtype)


def _dtype_to_be(source: ModelSource, config: Any) -> torch.dtype:
    """That of the weights once they are loaded; where the files decide, what the config says of them."""
    on_cpu = source.device.startswith("cpu") if source.device else not torch.cuda.is_available()
    dtype = _dtype(source, on_cpu)
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _require_stops(model: Any, name: str) -> None:
    """Refuse a generation config whose end of text is no token, before it is needed.

    Raises:
        ModelError: it is none.
    """
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if not all(isinstance(stop, int | None) for stop in (stops if isinstance(stops, list) else [stops])):
        raise ModelError(
            f"{name!r}: eos_token_id of its generation_config.json is {stops!r}; a token's number is needed"
        )


def load_model(
    source: ModelSource,
    kind: TaskKind,
    num_labels: int = 1,
    seed: int = 0,
    images: bool = False,
    stays_on_cpu: bool = False,
) -> LoadedModel:
    """Model and tokenizer, with ``images`` a processor too, for a kind of task. A new head is drawn from ``seed``.

    Only safetensors are read, never pickles.

    Args:
        stays_on_cpu: the caller moves it to the device, whose dtype it has.

    Raises:
        ModelError: model or tokenizer cannot be found, read, or used for this kind of task.
    """
    config = load_config(source)
    device = device_of(source)
    head = {"num_labels": num_labels} if kind in ("classification", "regression") else {}
    cls = _model_class(config, kind)
    if head and cls is not WITH_HEAD[images]:
        what = "image" if images else "text"
        raise ModelError(f"transformers has no {what} classification for the architecture {config.model_type!r}")
    tokenizer, processor = load_readers(source, kind, images)
    torch.manual_seed(seed)
    with wrap_library_errors(
        ModelError,
        f"cannot load the model {source.name!r}",
        "whole .safetensors files of this model are needed; fetch or save them again",
    ):
        model, report = cls.from_pretrained(
            locate(source),
            revision=source.revision,
            dtype=_dtype(source, device.type == "cpu"),
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            ignore_mismatched_sizes=bool(head),  # a head for another number of classes makes way for a new one
            output_loading_info=True,
            **(_blocks_on_disk(source, kind, device) if source.stream else {}),
            **quantization_arguments(source, config, device, lambda: empty_model(source, kind)),
            **head,
        )
    require_complete(model, report, source.name, new_head=bool(head))
    _require_stops(model, source.name)
    require_finite_weights(model, repr(source.name))
    if source.quantization is not None and (files := files_of(source)) is not None:
        require_finite_files(files, source.name)
    if kind == "classification":
        model.config.problem_type = "single_label_classification"
    elif kind == "regression":
        model.config.problem_type = "regression"
    elif kind == "instruction" and not model.can_generate():
        named = bool(getattr(config, "architectures", None))
        missing = "" if named else "; its config.json names no architectures, such as LlamaForCausalLM: add its own"
        raise ModelError(
            f"{source.name!r} ({type(model).__name__}) does not write text; instruction data need a decoder{missing}"
        )
    if tokenizer is not None:
        pad_as(model, pad_id(model, tokenizer))
    model = model.eval() if source.stream or stays_on_cpu or is_quantized(model) else model.to(device).eval()
    return LoadedModel(model, tokenizer, source, revision_of(source, model.config), processor)


def pad_as(model: Any, pad: int) -> None:
    """Have the model take this token for padding, in every configuration that it reads.

    A decoder's classification head looks for the last token that is none; where its configuration names another than
    the batches are padded with, a row's prediction is read off padding, and depends on the rows beside it.
    """
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = pad


def require_writer(model: Any, kind: TaskKind, name: str) -> None:
    """Refuse to train a model to write that has no head for it.

    Raises:
        ModelError: the task is to write text, and the model is an encoder.
    """
    if kind in ("instruction", "text") and not model.can_generate():
        raise ModelError(
            f"{name!r} ({type(model).__name__}) does not write text, and the data are read as {kind}; "
            "--label-column names a column of classes or numbers to predict"
        )


def _blocks_on_disk(source: ModelSource, kind: TaskKind, device: torch.device) -> dict[str, Any]:
    """How transformers is to leave the blocks in their safetensors files, and load everything else."""
    empty = empty_model(source, kind)
    paths = [stack.path for stack in find_stacks(empty)]

    def places(module: nn.Module, prefix: str) -> dict[str, str]:
        devices = {prefix + name: str(device) for name, _ in module.named_parameters(recurse=False)}
        devices |= {prefix + name: str(device) for name, _ in module.named_buffers(recurse=False)}
        for name, child in module.named_children():
            full = prefix + name
            if full in paths:
                devices |= {f"{full}.{block}": "disk" for block, _ in child.named_children()}
            elif any(path.startswith(f"{full}.") for path in paths):
                devices |= places(child, f"{full}.")
            else:
                devices[full] = str(device)
        return devices

    # What cannot be read from the files as it is, such as experts that are stacked, is written there once more.
    scratch = tempfile.mkdtemp(prefix="layersift-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return {"device_map": places(empty, ""), "offload_folder": scratch}
