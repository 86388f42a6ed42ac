"""The frozen prefix runs without a graph, and the gradients above it are what they were."""

import copy

import pytest
import torch
import transformers as tf

from layersift import FrozenPrefix
from layersift.data.examples import token_losses
from layersift.models.stacks import find_stack
from layersift.step.losses import ResponseLoss, response_losses
from layersift.step.prefix import frozen_prefix
from prefixed import CHECKPOINTING, LORA, adapted, batch, gradients, runs
from tiny import attach, selection_of, tiny


@pytest.mark.parametrize("checkpointing", CHECKPOINTING, ids=["off", "non-reentrant", "reentrant"])
def test_frozen_blocks_run_forward_once_and_never_backward(checkpointing):
    model = adapted(checkpointing=checkpointing)
    if checkpointing:
        _, before = runs(model, lambda: gradients(model, batch()))
        assert before == [True] * 4  # what this is about
    with frozen_prefix(model) as frozen:
        forward, backward = runs(model, lambda: gradients(model, batch()))
    assert frozen == 2
    assert backward == [False, False, True, True]
    assert forward[:2] == [1, 1]
    assert (forward[2:] == [2, 2]) == bool(checkpointing)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING, ids=["off", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("layers", [(2, 3), (1, 3), (0, 2), (3,)])
def test_gradients_are_the_ordinary_ones(checkpointing, layers):
    ordinary = gradients(adapted(layers=layers), batch())
    model = adapted(layers=layers, checkpointing=checkpointing)
    with frozen_prefix(model) as frozen:
        found = gradients(model, batch())
    assert frozen == layers[0]
    assert found.keys() == ordinary.keys()
    for name, gradient in ordinary.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-7), name


def test_dropout_draws_the_same_numbers():
    plain = tiny("bert")
    plain.config.hidden_dropout_prob = 0.1
    model = attach(plain, selection_of(plain, [2, 3]), LORA).train()
    inputs = {"input_ids": batch()["input_ids"], "labels": torch.tensor([0, 1, 0])}
    before = gradients(model, inputs)
    with frozen_prefix(model):
        after = gradients(model, inputs)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_everything_is_restored():
    model = adapted(checkpointing={"use_reentrant": False})
    blocks = find_stack(model.get_base_model()).blocks(model.get_base_model())
    with frozen_prefix(model):
        assert "forward" in vars(blocks[0])
    with pytest.raises(TypeError), frozen_prefix(model):
        model({})
    assert not any("forward" in vars(block) for block in blocks)
    assert all(block.gradient_checkpointing for block in blocks)
    assert not any(block._forward_pre_hooks for block in blocks)


def test_a_trained_embedding_keeps_the_whole_graph():
    model = adapted()
    model.get_input_embeddings().weight.requires_grad_()
    with frozen_prefix(model) as frozen:
        found = gradients(model, batch())
    assert frozen == 0
    assert any("embed" in name for name in found)


def test_a_decoder_that_reads_a_trained_encoder_keeps_its_graph():
    inputs = {"input_ids": batch()["input_ids"], "labels": batch()["input_ids"][:, :5].contiguous()}
    for tower, layers in (("encoder", [1, 2]), ("decoder", [2, 3])):
        ordinary = gradients(adapted("t5", layers, tower=tower), inputs)
        model = adapted("t5", layers, tower=tower)
        with frozen_prefix(model):
            found = gradients(model, inputs)
        assert found.keys() == ordinary.keys()
        assert all(torch.allclose(found[name], ordinary[name], atol=1e-7) for name in ordinary)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {name: value[0] for name, value in batch(i).items()}


def test_as_a_callback_of_a_plain_trainer(tmp_path):
    def train(callbacks, checkpointing):
        model = adapted()
        arguments = tf.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = tf.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=callbacks)
        backward = runs(model, trainer.train)[1]
        return backward, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    _, ordinary = train([], False)
    callback = FrozenPrefix()
    backward, found = train([callback], True)
    assert backward == [False, False, True, True]
    assert callback.blocks == 2
    for name, weight in ordinary.items():
        assert torch.allclose(found[name], weight, atol=1e-6), name


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "gpt-neox", "qwen3"])
@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("head_is_trained", [False, True])
def test_the_loss_of_the_response_alone_is_the_models_own(name, chunk, head_is_trained, monkeypatch):
    monkeypatch.setattr("layersift.step.losses.CHUNK", chunk)
    base = tiny(name)
    model = attach(base, selection_of(base, [2, 3]), LORA)
    model.get_output_embeddings().requires_grad_(head_is_trained)
    inputs = batch()
    own = model(**inputs).loss
    own.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sizes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda m, a, o: sizes.append(o.shape.numel() // o.shape[-1]))
    loss = ResponseLoss()(model, inputs)
    loss.backward()
    handle.remove()
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)
    assert max(sizes) <= min(chunk, 12)  # of 27 tokens 12 count
    for n, gradient in expected.items():
        assert torch.allclose(dict(model.named_parameters())[n].grad, gradient, rtol=1e-4, atol=1e-7), n


def test_logits_that_are_capped_behind_the_head_stay_capped():
    config = tf.Gemma2Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=120,
        final_logit_softcapping=0.5,
    )
    model = tf.Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    inputs, loss = batch(), ResponseLoss()
    for _ in range(2):
        assert float(loss(model, copy.deepcopy(inputs))) == pytest.approx(float(model(**inputs).loss), rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "gpt-neox", "qwen3"])
def test_evaluation_computes_logits_of_the_response_alone(name):
    model, inputs = tiny(name), batch()
    labels = inputs.pop("labels")
    with torch.no_grad():
        wanted, counted = token_losses(model(**inputs).logits, labels, seq2seq=False)
        sizes = []
        model.get_output_embeddings().register_forward_hook(lambda m, a, o: sizes.append(o.shape[:-1].numel()))
        losses, counts = response_losses(model, inputs, labels)
    assert torch.allclose(losses, wanted, rtol=1e-5)
    assert counts.tolist() == counted.tolist()
    assert sizes == [int(counts.sum())]


def test_accumulated_batches_share_one_count():
    model, inputs = tiny("llama"), batch()
    summed = ResponseLoss()(model, inputs, 1)
    assert float(ResponseLoss()(model, inputs, 24)) == pytest.approx(float(summed) / 24)
