"""Gradients under the frozen prefix against plain autograd's, for every subset of what one architecture can train."""

import itertools
import zlib

import torch
import transformers
from torch import nn

from layersift.errors import ModelError
from layersift.models.stacks import find_stacks
from layersift.step.prefix import frozen_prefix
from tiny_types import tiny_model
from whole_way import LARGEST

# Which blocks of each stack are trained beside the subset of what stands outside.
BLOCKS = ((), (-1,), (-1, -3))


def parts_of(model):
    """Parameters outside of the blocks by what they belong to: embeddings, norm, conv, head, projector."""
    stacks = find_stacks(model)
    inside = tuple(f"{stack.path}." for stack in stacks)
    parts, above = {}, False
    for path, module in model.named_modules():
        above = above or path.startswith(inside)
        own = [p for _, p in module.named_parameters(recurse=False)]
        if own and not path.startswith(inside):
            parts.setdefault(_part(module, above), []).extend(own)
    blocks = [stack.blocks(model) for stack in stacks]
    return parts, blocks


def _part(module, above):
    name = type(module).__name__.lower()
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if "norm" in name:
        return "norm"
    if "conv" in name:
        return "conv"
    return "head" if above else "projector"


def inputs_of(kind):
    ids = torch.randint(3, 110, (2, 10), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1]) if kind == "classification" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def loss_of(model, inputs):
    """The loss, of two classes where the class names none itself."""
    said = model(**inputs)
    return said.loss if said.loss is not None else said[0].float().logsumexp(-1).mean()


def try_gradients(model_type, kind, say):
    """Say what is ``built``, which subsets are ``tried``, and each that is not equal to the bit as ``wrong``."""
    torch.set_num_threads(1)
    model = tiny_model(model_type, kind)
    size = sum(p.numel() for p in model.parameters())
    assert size < LARGEST, f"{size:,} parameters at the smallest size that its config leaves"
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    parts, blocks = parts_of(model)
    inputs, tried, wrong = inputs_of(kind), 0, []
    loss_of(model, inputs)
    say("built", "")
    for size in range(len(parts) + 1):
        for others in itertools.combinations(sorted(parts), size):
            seed = zlib.crc32(repr(others).encode())
            for chosen in BLOCKS if size in (0, len(parts)) else [BLOCKS[seed % 3]]:
                _train(model, [p for name in others for p in parts[name]], blocks, chosen)
                if not any(p.requires_grad for p in model.parameters()):
                    continue
                checkpointing = model.supports_gradient_checkpointing and (seed // 3) % 2 == 0
                found = _gradients(model, inputs, checkpointing, frozen=True)
                wanted = _gradients(model, inputs, checkpointing, frozen=False)
                tried += 1
                if (said := _difference(found, wanted)) and _is_repeatable(model, inputs, checkpointing, wanted):
                    wrong.append(f"{others} {chosen} checkpointing {checkpointing}: {said}")
    say("tried", tried)
    say("wrong", wrong)


def _train(model, others, blocks, chosen):
    model.requires_grad_(False)
    for parameter in others:
        parameter.requires_grad_(True)
    for stack in blocks:
        for index in chosen:
            if -index <= len(stack):
                stack[index].requires_grad_(True)


def _gradients(model, inputs, checkpointing, frozen):
    """By parameter, or what plain autograd says that it cannot do."""
    model.train()
    model.zero_grad(set_to_none=True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    transformers.set_seed(0)  # some attention draws from numpy
    try:
        if frozen:
            with frozen_prefix(model):
                loss_of(model, inputs).backward()
        else:
            loss_of(model, inputs).backward()
    except ModelError:
        raise
    except RuntimeError as error:  # what is trained does not bear on the loss
        return " ".join(str(error).split())
    finally:
        if checkpointing:
            model.gradient_checkpointing_disable()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _is_repeatable(model, inputs, checkpointing, wanted):
    """Whether plain autograd gives to the bit what it gave before."""
    return not any(_difference(_gradients(model, inputs, checkpointing, frozen=False), wanted) for _ in range(5))


def _difference(found, wanted):
    if isinstance(found, str) or isinstance(wanted, str):
        return "" if str(found) == str(wanted) else f"{str(found)[:80]} instead of {str(wanted)[:80]}"
    if found.keys() != wanted.keys():
        return f"gradients of other parameters: {sorted(found.keys() ^ wanted.keys())[:3]}"
    return next((name for name in wanted if not torch.equal(found[name], wanted[name])), "")
