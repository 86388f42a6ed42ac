"""One tokenised sample of a task, batches of them, and the loss of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import cross_entropy

from layersift.config.inputs import TaskKind
from layersift.errors import DataError

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
