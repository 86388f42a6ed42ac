"""Made-up samples, and representations read off transformers' own hidden states."""

import torch

from layersift.data.examples import Example
from tiny import CLASSES

TEXT = [name for name in CLASSES if name not in ("t5", "llava")]


def make_examples(n=12, seed=0, response=True, longest=17):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(n):
        length = int(torch.randint(5, longest, (1,), generator=generator))
        ids = tuple(torch.randint(5, 110, (length,), generator=generator).tolist())
        content = (False, *(True for _ in range(length - 2)), False)
        examples.append(Example(ids, content, tuple(i >= 3 for i in range(length)) if response else None))
    return examples


def reference(model, stack, examples, position, shift=0):
    """One unpadded sample at a time through output_hidden_states; the raw last block by a hook of its own."""
    raw = []
    handle = stack.blocks(model)[-1].register_forward_hook(
        lambda _m, _a, out: raw.append(out[0] if isinstance(out, tuple) else out)
    )
    rows = []
    for example in examples:
        with torch.no_grad():
            states = model(torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states
        chosen = {
            "first": [0],
            "last": [len(example) - 1],
            "last-content": [len(example) - 2],
            "mean": list(range(len(example))),
            "last-prompt": [shift + 2],
            "response-mean": list(range(shift + 3, len(example))),
        }[position]
        rows.append([h[0, chosen].double().mean(dim=0) for h in (*states[:-1], raw.pop())])
    handle.remove()
    return [torch.stack(column) for column in zip(*rows, strict=True)]
