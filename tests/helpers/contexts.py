"""Subjects for criteria, and their gradients by ordinary autograd."""

import dataclasses

import numpy as np
import torch

from layersift.data.examples import Example, labelled_batch
from layersift.models.stacks import BlockStack, find_stack
from layersift.represent.read import Representations
from layersift.score.context import Activations, ScoringContext
from tiny import tiny

KINDS = {"bert": "classification", "llama": "instruction", "gpt2": "instruction"}


def examples(kind, count=16, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        length = int(rng.integers(5, 11))
        ids = tuple(int(t) for t in rng.integers(5, 100, length))
        response = (False,) * 3 + (True,) * (length - 3) if kind == "instruction" else None
        label = i % 2 if kind == "classification" else None
        made.append(Example(ids, (True,) * length, response, label=label))
    return tuple(made)


def context(name="bert", count=16, **settings):
    model = tiny(name)
    stack = find_stack(model)
    return ScoringContext(model, stack, examples(KINDS[name], count), KINDS[name], **{"count": 2, **settings})


def gradients_one_by_one(given):
    """dL/dW of each sample by itself, with ordinary autograd: {layer: {leaf: [G of sample 0, ...]}}, and the counts."""
    model, found, counts = given.model, {}, []
    for example in given.examples:
        model.zero_grad()
        batch = labelled_batch([example], 0, given.kind)
        logits = model(input_ids=batch["input_ids"]).logits[0]
        if given.kind == "classification":
            loss, count = -torch.log_softmax(logits, -1)[example.label], 1
        else:
            chosen = [(t - 1, i) for t, (i, r) in enumerate(zip(example.input_ids, example.response, strict=True)) if r]
            loss, count = -sum(torch.log_softmax(logits[t], -1)[i] for t, i in chosen), len(chosen)
        loss.backward()
        counts.append(count)
        for layer, block in enumerate(given.stack.blocks(model)):
            for leaf, module in block.named_modules():
                if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
                    place = found.setdefault(layer, {}).setdefault(leaf, [])
                    place.append(module.weight.grad.double().clone())
    model.zero_grad(set_to_none=True)
    return found, torch.tensor(counts).double()


def represented(states, dtype=torch.float32):
    """A context whose representations are ``states``, which no model had to be run for."""
    found = ScoringContext(None, BlockStack("b", "encoder", len(states) - 1, ()), (None,) * len(states[0]), "text")
    read = Representations(tuple(states), dtype, 0.0, 0)
    return dataclasses.replace(found, activations=Activations.holding({"mean": read}))


def measured(values):
    """A context in which token by token measures gave ``values`` (M, n)."""
    m, n = values.shape
    context = ScoringContext(None, BlockStack("b", "encoder", m, ()), (None,) * n, "text")
    generator = torch.Generator().manual_seed(0)
    states = tuple(torch.randn(n, 4, generator=generator) for _ in range(m + 1))
    read = Representations(states, torch.float32, 0.0, 0, {"cosine": torch.from_numpy(values)})
    return dataclasses.replace(context, activations=Activations.holding({"mean": read}))
