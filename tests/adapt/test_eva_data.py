"""EVA starts from what the adapted modules read of the data: the principal directions of it, with dropout off."""

import numpy as np
import pytest
import torch
from peft import EvaConfig, LoraConfig

from layersift.adapt.attach import _real_tokens, attach, attached
from layersift.errors import AdapterError
from layersift.models.stacks import find_stack
from tiny import tiny


def config(*targets, **more):
    """Three directions of every target: rho = 1 leaves the ranks alike."""
    settings = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0), **more}
    return LoraConfig(r=3, lora_alpha=6, target_modules=list(targets), **settings)


def data(batches=4, rows=8, tokens=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        ids = torch.randint(5, 100, (rows, tokens), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(rows):
            mask[row, tokens - row % 3 :] = 0
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def first_maps(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}


def test_the_start_does_not_depend_on_dropout_and_modes_stay_as_they_were():
    found = []
    for training, seed in ((False, 0), (True, 1), (True, 2)):
        model = tiny("bert").train(training)
        assert model.config.hidden_dropout_prob > 0
        modes = [(m, m.training) for m in model.modules()]
        torch.manual_seed(seed)
        adapted = attach(model, find_stack(model), [1, 3], config("query"), batches=data())
        found.append(first_maps(adapted))
        assert all(m.training == training for m, training in modes)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[n], value) for n, value in found[0].items())


@pytest.mark.parametrize("labels", [None, "classes"])
def test_the_rows_of_a_are_the_principal_directions_of_the_real_tokens(labels):
    model = tiny("bert")
    batches = data()
    read = {1: [], 3: []}
    with torch.no_grad():
        for batch in batches:
            states = model(**batch, output_hidden_states=True).hidden_states
            for layer, rows in read.items():
                rows.append(states[layer][batch["attention_mask"].bool()].double().numpy())
    if labels:
        batches = [{**b, "labels": torch.arange(8) % 2} for b in batches]
    adapted = attach(model, find_stack(model), [1, 3], config("query"), batches=batches)
    for layer, rows in read.items():
        x = np.concatenate(rows)
        wanted = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:3]
        query = adapted.base_model.model.bert.encoder.layer[layer].attention.self.query
        ours = query.lora_A["default"].weight.detach().double().numpy()
        assert np.abs((ours * wanted).sum(axis=1)) == pytest.approx([1, 1, 1], abs=0.04)  # PEFT's is incremental
        assert not query.lora_B["default"].weight.any()


def test_without_data_it_is_refused_before_anything_is_attached():
    model = tiny("bert")
    with pytest.raises(AdapterError, match="give attach\\(\\) batches"):
        attach(model, find_stack(model), [1], config("query"))
    with pytest.raises(AdapterError, match="there are no batches"):
        attached(model, find_stack(model), [1], config("query")).__enter__()
    assert not hasattr(model, "peft_config")
    assert not any("lora" in n for n, _ in model.named_parameters())


def test_rows_of_padding_are_left_out_by_the_mask_that_fits():
    hidden = torch.arange(2 * 3 * 2).reshape(2, 3, 2).float()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    kept = hidden[mask.bool()]
    read = {"attention_mask": mask}
    assert torch.equal(_real_tokens((hidden,), read, "encoder.block.0.q"), kept)
    assert torch.equal(_real_tokens(hidden, read, "decoder.block.0.q"), kept)
    assert torch.equal(_real_tokens(hidden, {}, "q"), hidden.reshape(-1, 2))
    longer = torch.ones(2, 5, 2)
    assert torch.equal(_real_tokens(longer, read, "q"), longer.reshape(-1, 2))  # another tower's tokens


def test_of_two_masks_a_decoders_map_is_given_that_of_what_is_written():
    hidden = torch.arange(2 * 3 * 2).reshape(2, 3, 2).float()
    read = torch.tensor([[1, 1, 1], [1, 1, 0]])
    labels = torch.tensor([[5, -100, -100], [5, 6, 7]])
    both = {"attention_mask": read, "labels": labels}
    assert torch.equal(_real_tokens(hidden, both, "base.decoder.block.0.q"), hidden[labels != -100])
    assert torch.equal(_real_tokens(hidden, both, "base.encoder.block.0.q"), hidden[read.bool()])
    classes = {"attention_mask": read, "labels": torch.tensor([0, 1])}
    assert torch.equal(_real_tokens(hidden, classes, "base.decoder.block.0.q"), hidden[read.bool()])
    written = torch.ones(2, 4, 2)
    four = {"attention_mask": read, "labels": torch.tensor([[5, 6, -100, -100], [5, 6, 7, 8]])}
    assert torch.equal(_real_tokens(written, four, "base.decoder.block.0.q"), written[four["labels"] != -100])


def test_for_a_while_and_then_as_before():
    model = tiny("bert")
    model.bert.embeddings.requires_grad_(False)
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    with attached(model, find_stack(model), [1], config("query"), batches=data(2)) as adapted:
        assert any("lora_A" in n for n, p in adapted.named_parameters() if p.requires_grad)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], v) and after[n].requires_grad == r for n, (v, r) in before.items())
    assert not hasattr(model, "peft_config")
