"""Adapted models with a frozen prefix, and what runs and has gradients in them."""

import torch
from peft import LoraConfig

from layersift.models.stacks import find_stack
from tiny import attach, selection_of, tiny

LORA = LoraConfig(r=4, target_modules="all-linear")


CHECKPOINTING = [None, {"use_reentrant": False}, {"use_reentrant": True}]


def adapted(name="llama", layers=(2, 3), checkpointing=None, tower=None):
    base = tiny(name)
    model = attach(base, selection_of(base, layers, tower), LORA)
    with torch.no_grad():  # B = 0 would make the gradients of A zero
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(key)))
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    return model.train()


def batch(seed=0):
    ids = torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[0, 6:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def gradients(model, inputs):
    torch.manual_seed(0)
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def runs(model, step):
    """How often each block of the first stack ran forward, and whether it was backpropagated through."""
    base = model.get_base_model()
    blocks = find_stack(base).blocks(base)
    forward, backward = [0] * len(blocks), [False] * len(blocks)
    handles = []
    for i, block in enumerate(blocks):
        norm = next(m for m in block.modules() if "norm" in type(m).__name__.lower())
        handles.append(norm.register_forward_hook(lambda m, a, o, i=i: forward.__setitem__(i, forward[i] + 1)))
        last = list(block.modules())[
            -1
        ]  # the states that the last frozen block hands on may want a gradient themselves
        handles.append(last.register_full_backward_hook(lambda m, gi, go, i=i: backward.__setitem__(i, True)))
    step()
    for handle in handles:
        handle.remove()
    return forward, backward
