"""The loss from chosen logits against the loss from all of them, with their gradients, and how it came about."""

import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn.functional import cross_entropy

from layersift.data.examples import sample_losses, token_losses
from layersift.step import losses
from layersift.step.losses import ResponseLoss, response_losses
from tiny import DECODER, tiny


def batch(seed=0, rows=3, tokens=9):
    ids = torch.randint(5, 100, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[0, 6:] = -100
    labels[1, 5] = -100
    labels[2, 0] = ids[2, 0]  # of the first token no logits tell
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def capped():
    """Gemma 2 bends its logits behind the head."""
    torch.manual_seed(0)
    config = tf.Gemma2Config(**{**DECODER, "num_hidden_layers": 2}, final_logit_softcapping=0.5)
    return tf.Gemma2ForCausalLM(config).eval()


def make_selection(model, inputs):
    """Sum of the losses in float64, from the model's own logits, and how many there are."""
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(logits)):
        for t in range(1, logits.shape[1]):
            wanted = int(inputs["labels"][row, t])
            if wanted != -100:
                total, count = total - torch.log_softmax(logits[row, t - 1].double(), dim=-1)[wanted], count + 1
    return total, count


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [lambda: tiny("llama"), lambda: tiny("gpt2"), capped], ids=["llama", "gpt2", "capped"])
@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("items", [None, 7])
def test_loss_and_gradients_are_the_models_own(make, head, chunk, items, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    model, inputs = make(), batch()
    model.get_output_embeddings().requires_grad_(head == "trained")
    total, count = make_selection(model, inputs)
    wanted = gradients(model, total / (items or count))
    for loss in (ResponseLoss(), ResponseLoss(), ResponseLoss(False)):
        found = loss(model, inputs, items)
        assert found.item() == pytest.approx((total / (items or count)).item(), rel=1e-5)
        ours = gradients(model, found * 1.0)
        assert ours.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_gradient_follows_what_is_done_with_the_loss():
    """Scaled, as where gradients are accumulated, and twice in one graph."""
    model, inputs = tiny("llama"), batch()
    model.get_output_embeddings().requires_grad_(False)
    once = gradients(model, ResponseLoss()(model, inputs))
    fourth = gradients(model, ResponseLoss()(model, inputs) / 4)
    both = gradients(model, ResponseLoss()(model, inputs) + 2 * ResponseLoss()(model, batch(1)))
    other = gradients(model, ResponseLoss()(model, batch(1)))
    for name in once:
        torch.testing.assert_close(fourth[name], once[name] / 4, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(both[name], once[name] + 2 * other[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("make", "is_all"), [(lambda: tiny("llama"), True), (capped, False)])
def test_the_first_batch_tells_whether_the_head_is_all(make, is_all):
    model, loss = make(), ResponseLoss()
    calls = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, o: calls.append(o.shape[:-1].numel()))
    loss(model, batch())
    assert loss._head_is_all is is_all
    calls.clear()
    counted = int((batch()["labels"][:, 1:] != -100).sum())
    loss(model, batch())
    assert counted in calls
    assert max(calls) == counted < batch()["labels"].numel()


@pytest.mark.parametrize("make", [lambda: tiny("llama"), capped], ids=["llama", "capped"])
def test_a_batch_without_labels_has_no_loss_and_those_behind_it_have_the_right_one(make):
    model, loss, inputs = make(), ResponseLoss(), batch()
    nothing = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    found = loss(model, nothing)
    assert found.item() == 0
    total, count = make_selection(model, inputs)
    assert loss(model, inputs).item() == pytest.approx((total / count).item(), rel=1e-5)


class Flattening(nn.Module):
    """Calls a head with tokens as rows."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, states):
        return self.head(states.flatten(0, 1)).unflatten(0, states.shape[:2])


def test_a_head_that_is_called_in_some_other_way_gives_all_logits():
    model, inputs = tiny("llama"), batch()
    total, count = make_selection(model, inputs)
    head = model.lm_head
    model.lm_head = Flattening(head)
    model.get_output_embeddings = lambda: head
    loss = ResponseLoss()
    for _ in range(2):
        assert loss(model, inputs).item() == pytest.approx((total / count).item(), rel=1e-5)
    labels = inputs.pop("labels")
    with torch.no_grad():
        losses, counts = response_losses(model, inputs, labels)
    assert losses.sum().item() == pytest.approx(total.item(), rel=1e-5)
    assert counts.tolist() == [2, 4, 5]


def test_losses_of_each_row_and_their_counts():
    model, inputs = tiny("llama"), batch()
    labels = inputs.pop("labels")
    with torch.no_grad():
        losses, counts = response_losses(model, inputs, labels)
        logits = model(**inputs).logits
    wanted = []
    for row in range(3):
        total, _ = make_selection(model, {k: v[row : row + 1] for k, v in {**inputs, "labels": labels}.items()})
        wanted.append(float(total.detach()))
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5)
    assert counts.tolist() == [2, 4, 5]
    ours, again = token_losses(logits, labels, seq2seq=False)
    assert ours.tolist() == pytest.approx(wanted, rel=1e-5)
    assert again.tolist() == [2, 4, 5]


def test_an_encoder_decoders_logits_are_of_the_token_itself():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100], [3, -100, 4]])
    losses, counts = token_losses(logits, labels, seq2seq=True)
    chances = torch.log_softmax(logits, dim=-1)
    assert losses.tolist() == pytest.approx(
        [-float(chances[0, 0, 1] + chances[0, 1, 2]), -float(chances[1, 0, 3] + chances[1, 2, 4])]
    )
    assert counts.tolist() == [2, 2]


def test_classes_and_numbers_have_a_loss_each():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.25]])
    losses, counts = sample_losses(logits, torch.tensor([1, 0]), "classification", False)
    assert losses.tolist() == pytest.approx(cross_entropy(logits, torch.tensor([1, 0]), reduction="none").tolist())
    assert losses[0].item() == pytest.approx(torch.log(1 + torch.exp(torch.tensor(3.0))).item())
    assert counts.tolist() == [1, 1]
    losses, counts = sample_losses(torch.tensor([[2.0], [0.5]]), torch.tensor([1, 1]), "regression", False)
    assert losses.tolist() == pytest.approx([0.5, 0.125])
    assert counts.tolist() == [1, 1]
