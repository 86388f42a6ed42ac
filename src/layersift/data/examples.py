"""One tokenised sample of a task, batches of them, and the loss of each.

Also what a model can read (tokens it has an embedding for, as many as it has places for), and batches whose samples do
not change one another where a model does not mask all padding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

from layersift.compat import name_of
from layersift.config.recipe import TaskKind
from layersift.errors import DataError, LayersiftError, ModelError, frames_of, one_line
from layersift.models.stacks import embedded_tokens, no_cache

IGNORED = -100  # label of a token on which no loss is taken, as PyTorch and transformers have it


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Example:
    """One sample as the model reads it, unpadded; every tuple has one entry a token.

    An image alone has no tokens before the model has cut it into patches: its tuples are empty.
    """

    input_ids: tuple[int, ...]
    content: tuple[bool, ...]  # False for special tokens and for tokens that are only white space
    response: tuple[bool, ...] | None = None  # True where the loss is taken; None where the task has no response
    types: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # token_type_ids and their like, by name
    label: int | float | None = None  # class index, or the number to predict
    target: tuple[int, ...] | None = None  # what the decoder of an encoder-decoder is to write
    image: Callable[[], Tensors] | None = None  # computes the image inputs; all of them at once would fill the memory
    patches: int = 0  # of an image alone: about how many tokens it becomes

    def __len__(self) -> int:
        return len(self.input_ids) or self.patches

    def decoder_side(self) -> Example:
        """The sample as the decoder of an encoder-decoder reads it: its target."""
        target = self.target or ()
        return Example(target, (True,) * len(target), (True,) * len(target))

    def cut(self, tokens: int) -> Example:
        """The sample's first tokens."""
        response = None if self.response is None else self.response[:tokens]
        return replace(self, input_ids=self.input_ids[:tokens], content=self.content[:tokens], response=response)

    def seen_as(self, tokens: int) -> Example:
        """The sample as a tower sees it that makes ``tokens`` tokens of its own, as a vision tower does of an image."""
        return Example((0,) * tokens, (True,) * tokens)


def digest_of(examples: Sequence[Example]) -> str:
    """SHA-256 over what a model reads and learns of examples; of images only the first, which tells how they are read.

    Tokenizer, chat template, cut and classes all show in it, whatever files they come from.
    """
    digest = hashlib.sha256()
    for example in examples:
        read = [example.input_ids, example.response, dict(example.types), example.label, example.target]
        digest.update(json.dumps(read).encode())
    if examples and examples[0].image is not None:
        for name, values in sorted(examples[0].image().items()):
            digest.update(f"{name}{tuple(values.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def image_of(examples: Sequence[Example]) -> tuple[int, int, int] | None:
    """Channels, height and width of the first image, where images are all that is read; None of other samples."""
    first = examples[0]
    if first.image is None or first.input_ids:
        return None
    pixels = first.image().get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        return None
    _, channels, height, width = pixels.shape
    return channels, height, width


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of samples in batches of equal token budget, longest first, so that padding stays small.

    A batch's longest sample times its size is at most ``budget``, unless a single sample exceeds it. Longest
    first: where memory is going to run out, it does so in the first batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(examples: Sequence[Example], pad_id: int) -> Tensors:
    """Model inputs: right-padded input_ids and attention_mask (B, T), with what else the samples have.

    That is token types (B, T), image inputs, and as ``labels`` (B, T') the target of an encoder-decoder. Padding
    stands on the right whatever side the tokenizer prefers: positions then count from each text's own start in every
    architecture, so that a sample's hidden states do not depend on its neighbours in the batch.

    Raises:
        DataError: the images of a batch do not fit together.
    """
    batch: Tensors = {}
    if examples[0].input_ids:
        rows = [e.input_ids for e in examples]
        batch["input_ids"] = _padded(rows, pad_id)
        batch["attention_mask"] = _padded([(1,) * len(row) for row in rows], 0)
        batch |= {name: _padded([e.types[name] for e in examples], 0) for name in examples[0].types}
    if examples[0].image is not None:
        images = [e.image() for e in examples if e.image is not None]
        try:
            batch |= {name: torch.cat([image[name] for image in images]) for name in images[0]}
        except RuntimeError:
            shapes = sorted({tuple(v.shape) for image in images for v in image.values()})
            raise DataError(
                f"images of different shapes together: {shapes}; have the processor resize them to one size "
                "(preprocessor_config.json)"
            ) from None
    if examples[0].target is not None:
        batch["labels"] = _padded([e.target or () for e in examples], IGNORED)
    return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(B, T) from rows of different lengths."""
    padded = torch.full((len(rows), max(len(row) for row in rows)), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded


def labelled_batch(examples: Sequence[Example], pad_id: int, kind: TaskKind) -> Tensors:
    """Model inputs with labels: the class, the number, or the tokens of the response (-100 elsewhere)."""
    batch = collate(examples, pad_id)
    if kind == "classification":
        batch["labels"] = torch.tensor([e.label for e in examples])
    elif kind == "regression":
        batch["labels"] = torch.tensor([e.label for e in examples], dtype=torch.float32)
    elif examples[0].target is None:
        targets = [
            tuple(i if r else IGNORED for i, r in zip(e.input_ids, e.response or (), strict=True)) for e in examples
        ]
        batch["labels"] = _padded(targets, IGNORED)
    return batch


def batches_of(
    examples: Sequence[Example], size: int, pad_id: int, kind: TaskKind, device: torch.device
) -> list[Tensors]:
    """Model inputs with labels, on a device, in order."""
    cut = [examples[i : i + size] for i in range(0, len(examples), size)]
    batches = (labelled_batch(members, pad_id, kind) for members in cut)
    return [{name: value.to(device) for name, value in batch.items()} for batch in batches]


def token_losses(logits: torch.Tensor, labels: torch.Tensor, seq2seq: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss (B,), float32, and number of counted tokens (B,) of each row.

    A decoder's logits are of the token behind; those of an encoder-decoder, which is shown its labels shifted, are of
    the token itself. Row by row and on the counted tokens alone: float32 logits of a whole batch would set the peak
    memory.

    Args:
        logits: (B, T, V).
        labels: (B, T), -100 where none counts.
    """
    if not seq2seq:
        logits, labels = logits[:, :-1], labels[:, 1:]
    rows = []
    for row, targets in zip(logits, labels, strict=True):
        counted = targets != IGNORED
        rows.append(cross_entropy(row[counted].float(), targets[counted], reduction="sum"))
    return torch.stack(rows), (labels != IGNORED).sum(dim=1)


def sample_losses(
    logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind, seq2seq: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each sample (B,) and the number of labelled things in it (B,).

    The negative log-likelihood of the class, of the response as a whole, or, half the squared error, of the number
    under a Gaussian of variance 1.
    """
    if kind in ("instruction", "text"):
        return token_losses(logits, labels, seq2seq)
    ones = torch.ones(len(labels), dtype=torch.long, device=labels.device)
    if kind == "regression":
        return (logits[:, 0].float() - labels.float()).square() / 2, ones
    return cross_entropy(logits.float(), labels, reduction="none"), ones


# What the code of models and of torch raises; other errors are those of whoever looks on.
OF_MODELS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def require_embedded(model: Any, examples: Sequence[Example]) -> None:
    """Refuse samples with a token that the model has no embedding for.

    Raises:
        ModelError: there is one.
    """
    known = embedded_tokens(model)
    highest = max((max(ids) for e in examples for ids in (e.input_ids, e.target or ()) if ids), default=0)
    if known is not None and highest >= known:
        raise ModelError(
            f"{_named(model)}: its tokenizer gives token {highest}, but the model has embeddings for {known} only; "
            "they do not belong together, or tokens were added without model.resize_token_embeddings"
        )


def _named(model: Any) -> str:
    return name_of(model) or type(model).__name__


@contextmanager
def wrap_model_errors(
    model: Any, examples: Sequence[Example], smaller: str = "a smaller --max-length or batch"
) -> Iterator[None]:
    """While a model reads samples, whatever its code raises of them becomes one line.

    Errors of the place, such as a full disk, are no fault of model or samples and pass as they are; so do those of
    callbacks and the like, which did not come through PyTorch.

    Args:
        smaller: what the caller has to make less of.

    Raises:
        ModelError: a token that the model has no embedding for; or what the model raised.
    """
    require_embedded(model, examples)
    try:
        yield
    except (LayersiftError, OSError):
        raise
    except OF_MODELS as error:
        if not any(str(frame.f_globals.get("__name__")).startswith("torch.") for frame in frames_of(error)):
            raise
        longest = max(map(len, examples), default=0)
        images = any(example.image is not None for example in examples)
        what = "images" if images else f"samples of up to {longest} tokens"
        remedy = _remedy(error, "another size in its preprocessor_config.json" if images else smaller)
        raise ModelError(f"{_named(model)} does not run on these {what} ({one_line(error)}); {remedy}") from error


def _remedy(error: Exception, smaller: str) -> str:
    """What helps against what a model's code raises, as far as that says what it lacks."""
    said = str(error).lower()
    if "memory" in said or "alloc" in said:
        return f"{smaller} takes less memory"
    if any(word in said for word in ("dtype", "half", "bfloat16", "same type", "scalar type")):
        return "another --dtype may be what it takes"
    if any(word in said for word in ("index out of range", "size", "shape", "dimension", "position")):
        return f"see whether {smaller} is what it takes"
    return "its code may be of another version than transformers is; LAYERSIFT_TRACEBACK=1 shows where"


log = logging.getLogger(__name__)
SHORT, LONG = (7, 4), 12  # tokens of the samples that it is tried with, at most; Funnel pools by pairs, and not by few
TOLERANCE = 1e-3  # of the largest value, or the root of the type's precision where that is coarser: in bfloat16 another
# length of padding rounds otherwise (SmolLM2: 0.0013); an unmasked neighbour is far above


Say = Callable[[Tensors], torch.Tensor]  # of model inputs, what is read of them, the first sample's first


def independent_batches(
    model: Any, examples: Sequence[Example], lengths: Sequence[int], budget: int, pad_id: int, say: Say | None = None
) -> list[list[int]]:
    """Indices of samples in batches of a token budget; see :func:`layersift.data.examples.batches_by_tokens`.

    Samples of different lengths are not put together where the model would let one change what it says of another.
    To be called in evaluation mode.

    Args:
        say: what the model says of a batch, (B, ...) or (B, T, ...); None: its logits, or the states that it returns.
    """
    batches = batches_by_tokens(lengths, budget)
    if len(examples) < 2 or all(len(batch) == 1 for batch in batches):
        return batches
    heeds = find_neighbour_effects(model, examples, pad_id, say or partial(_logits, model))
    if heeds == "none":
        return batches
    kind = type(model).__name__
    if heeds == "all":
        log.warning("%s lets samples of a batch change one another; each is read alone", kind)
        return [[index] for batch in batches for index in batch]
    log.warning("%s does not mask all padding; only samples of one length share a batch", kind)
    of_length: dict[tuple[int, int], list[int]] = {}
    for index, example in enumerate(examples):
        of_length.setdefault((len(example), len(example.target or ())), []).append(index)
    same_length = []
    for length in sorted(of_length, reverse=True):
        those = of_length[length]
        size = max(1, budget // max(1, lengths[those[0]]))
        same_length += [those[i : i + size] for i in range(0, len(those), size)]
    return same_length


def find_neighbour_effects(
    model: Any, examples: Sequence[Example], pad_id: int, say: Say
) -> Literal["none", "longer", "all"]:
    """Which neighbours in a batch change what a model says of a short text, tried with some first tokens."""
    ordered = sorted(examples, key=len)
    if not ordered[0].input_ids or ordered[0].image is not None or next(model.parameters()).device.type == "meta":
        return "none"
    heeded = {_neighbour_effect(model, ordered, tokens, pad_id, say) for tokens in SHORT}
    return next(kind for kind in ("all", "longer", "none") if kind in heeded)


def _neighbour_effect(
    model: Any, ordered: Sequence[Example], tokens: int, pad_id: int, say: Say
) -> Literal["none", "longer", "all"]:
    """Tried with the first tokens of the shortest example beside those of the longest; none of a length that fails."""
    short, long = ordered[0], ordered[-1]
    first = cut_example(short, min(tokens, len(long)))

    def said(*members: Example) -> torch.Tensor:
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in collate(members, pad_id).items()}
        with torch.no_grad():
            return say(inputs)[0]

    try:
        alone = said(first)
        if _differs(alone, said(first, cut_example(long, len(first)))):
            return "all"
        return "longer" if _differs(alone, said(first, cut_example(long, LONG))) else "none"
    except OF_MODELS:  # Funnel reads no four tokens; where all fail the pass itself is going to say what is wrong
        return "none"


def _differs(alone: torch.Tensor, beside: torch.Tensor) -> bool:
    tolerance = max(TOLERANCE, math.sqrt(torch.finfo(alone.dtype).eps))
    alone, beside = alone.float(), beside[: len(alone)].float()
    return bool((alone - beside).abs().max() > tolerance * alone.abs().max().clamp_min(1e-6))


def cut_example(example: Example, tokens: int) -> Example:
    """First tokens, without what a loss is taken on."""
    types = {name: values[:tokens] for name, values in example.types.items()}
    target = None if example.target is None else example.target[:1]
    return Example(example.input_ids[:tokens], example.content[:tokens], types=types, target=target)


def _logits(model: Any, inputs: Tensors) -> torch.Tensor:
    output = model(**inputs, **no_cache(model))
    logits: torch.Tensor = output[0] if getattr(output, "logits", None) is None else output.logits
    return logits
