"""What trains wrongly in other people's trainers: checkpoints around hooks, gradients that stop, trainings cut off."""

import functools
import logging

import pytest
import torch
import transformers as tf
from peft import LoraConfig

from layersift import FrozenPrefix
from layersift.errors import TrainingError
from layersift.models.stacks import find_stack
from layersift.step.prefix import frozen_prefix
from layersift.step.strategy import TrainingStrategy
from prefixed import adapted, batch, gradients, runs
from tiny import attach, selection_of

REENTRANT = {"use_reentrant": True}


def as_before_5_23(model):
    """Checkpoints around ``__call__``, and so around a block's hooks, as transformers 5.0 to 5.22 has them itself."""
    base = model.get_base_model()
    for block in find_stack(base).blocks(base):
        cls = type(block)
        if not hasattr(cls.forward, "__wrapped__"):
            continue

        class Old(cls):
            def __call__(self, *args, **kwargs):
                if not (self.gradient_checkpointing and self.training):
                    return super().__call__(*args, **kwargs)
                kwargs.pop("past_key_values", None)
                return self._gradient_checkpointing_func(functools.partial(super().__call__, **kwargs), *args)

        Old.forward = cls.forward.__wrapped__  # which checkpoints by itself
        Old.__name__ = cls.__name__
        block.__class__ = Old
    return model


@pytest.mark.parametrize("old", [False, True], ids=["inside", "around"])
@pytest.mark.parametrize("layers", [(2, 3), (1, 3)])
def test_under_reentrant_checkpoints_gradients_are_the_ordinary_ones(layers, old):
    wanted = gradients(adapted(layers=layers), batch())
    model = adapted(layers=layers, checkpointing=REENTRANT)
    if old:
        as_before_5_23(model)
    with frozen_prefix(model):
        found = gradients(model, batch())
        forward, backward = runs(model, lambda: gradients(model, batch()))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-7), name
    assert backward == [i >= layers[0] for i in range(4)]
    assert forward == [1 if i < layers[0] else 2 for i in range(4)]


def test_a_classifiers_adapters_have_gradients_there_too():
    """Whose head has one in any case: without theirs nothing failed, and it trained alone."""
    model = as_before_5_23(adapted("bert", (1, 3), REENTRANT))
    model.get_base_model().classifier.requires_grad_(True)
    with frozen_prefix(model):
        found = gradients(model, {"input_ids": batch()["input_ids"], "labels": torch.tensor([0, 1, 0])})
    of_adapters = [gradient for name, gradient in found.items() if "lora_" in name]
    assert len(of_adapters) == len([name for name, _ in model.named_parameters() if "lora_" in name])
    assert all(bool(gradient.abs().sum()) for gradient in of_adapters)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        ids = torch.randint(5, 100, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def trainer_of(model, place, *callbacks, **more):
    arguments = tf.TrainingArguments(
        output_dir=str(place),
        **{"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, **more},
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return tf.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=list(callbacks))


def parameters_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def moved(model, before):
    """Layers of which a B has changed."""
    after = dict(model.named_parameters())
    return sorted(
        {int(n.split("layers.")[1][0]) for n, p in before.items() if "lora_B" in n and not torch.equal(after[n], p)}
    )


class Detaching(tf.TrainerCallback):
    """Cuts block 2 off from the loss, as a checkpoint without an input that has a gradient does."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        block = model.get_base_model().model.layers[2]
        block.register_forward_hook(lambda module, given, output: output.detach().requires_grad_())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_whose_gradients_stop_on_their_way_is_ended(tmp_path, accumulation):
    model = adapted(layers=(1, 2, 3))
    before = parameters_of(model)
    trainer = trainer_of(model, tmp_path, FrozenPrefix(), Detaching(), gradient_accumulation_steps=accumulation)
    with pytest.raises(TrainingError, match=r"is trained in model\.layers\.1, model\.layers\.2: .*'use_reentrant'"):
        trainer.train()
    assert moved(model, before) == []


def test_what_is_not_run_need_not_have_gradients(tmp_path):
    """A block that is left out of the pass, as towers are whose inputs a batch does not have."""
    model = adapted(layers=(1, 2, 3))
    base = model.get_base_model()
    left_out = base.model.layers[2]

    class Skipping(tf.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            base.model.layers[2] = torch.nn.Identity()
            base.model.layers[2].forward = lambda states, **more: states

        def on_step_end(self, args, state, control, **kwargs):
            base.model.layers[2] = left_out

    before = parameters_of(model)
    trainer_of(model, tmp_path, FrozenPrefix(), Skipping(), max_steps=1).train()
    assert moved(model, before) == [1, 3]


class Stop(tf.TrainerCallback):
    """As Ctrl-C in the middle of a step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def interrupted(model, place, callback):
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, place, callback, Stop()).train()


def test_after_an_interrupted_training_the_next_one_is_as_any(tmp_path, caplog):
    first = adapted(layers=(2, 3), checkpointing={"use_reentrant": False})
    interrupted(first, tmp_path, FrozenPrefix(dropout=False))
    base = first.unload()
    vars(base).pop("peft_config", None)  # left by older versions of PEFT
    torch.manual_seed(0)
    model = attach(base, selection_of(base, (0, 1, 3)), LoraConfig(r=4, target_modules="all-linear"))
    before = parameters_of(model)
    trainer_of(model, tmp_path).train()
    assert moved(model, before) == [0, 1, 3]
    assert "an earlier training ended in an exception" in caplog.text
    blocks = find_stack(base).blocks(base)
    assert not any("forward" in vars(block) for block in blocks)
    assert all(block.gradient_checkpointing for block in blocks)


def require_refused_once(model, tmp_path):
    """Layers rest; the next training is refused, and the one after it trains them all."""
    assert not all(p.requires_grad for n, p in model.named_parameters() if "lora" in n)
    with pytest.raises(TrainingError, match="layers that rested are trained again: make the Trainer anew"):
        trainer_of(model, tmp_path).train()
    before = parameters_of(model)
    trainer_of(model, tmp_path).train()
    assert moved(model, before) == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", ["freezing:1@0.25,2@0.5", "rotating:1@1"])
def test_layers_that_rested_when_it_was_interrupted_are_not_left_so_in_silence(tmp_path, strategy):
    model = adapted(layers=(0, 1, 2, 3))
    interrupted(model, tmp_path, TrainingStrategy(strategy))
    require_refused_once(model, tmp_path)


def test_read_without_gradients_the_model_is_put_back_with_a_warning_alone(tmp_path, caplog):
    model = adapted(layers=(0, 1, 2, 3))
    interrupted(model, tmp_path, TrainingStrategy("freezing:1@0.25,2@0.5"))
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        model(**batch())
    assert "put back as it was before it" in caplog.text
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora" in n)


def test_dropped_gradients_do_not_outlive_an_interrupted_training(tmp_path):
    model = adapted(layers=(0, 3))
    wanted = gradients(model, batch())
    interrupted(model, tmp_path, TrainingStrategy("skipping:1"))
    with torch.no_grad():
        for name, value in parameters_of(adapted(layers=(0, 3))).items():
            dict(model.named_parameters())[name].copy_(value)
    found = gradients(model, batch())
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


class Failing(tf.TrainerCallback):
    """As Ctrl-C, or a GPU without memory, in the middle of the third step."""

    def __init__(self, where):
        self.where, self.handle = where, None

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step != 2:
            return
        block = model.get_base_model().model.layers[3]
        weight = next(p for n, p in model.named_parameters() if "lora_A" in n and p.requires_grad)

        def fail(*given):
            self.handle.remove()
            raise KeyboardInterrupt

        hook = block.register_forward_hook if self.where == "forward" else weight.register_post_accumulate_grad_hook
        self.handle = hook(fail)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_is_cut_short_in_its_passes_is_noticed_by_the_next_training(tmp_path, where):
    model = adapted(layers=(0, 1, 2, 3))
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, tmp_path, TrainingStrategy("rotating:1@1"), Failing(where)).train()
    require_refused_once(model, tmp_path)


def test_several_forward_passes_of_one_step_are_the_trainings(tmp_path, caplog):
    """As losses take that compare answers, each step being one backward pass."""

    class Twice(tf.Trainer):
        def compute_loss(self, model, inputs, **more):
            return model(**inputs).loss + model(**inputs).loss

    model = adapted(layers=(1, 3))
    trainer = trainer_of(model, tmp_path, TrainingStrategy("rotating:1@1"), gradient_accumulation_steps=2)
    trainer.__class__ = Twice
    trainer.train()
    assert "exception" not in caplog.text


def test_a_training_that_runs_is_left_alone(tmp_path):
    seen = []

    class Looking(tf.TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append("forward" in vars(model.get_base_model().model.layers[0]))

    trainer_of(adapted(layers=(2, 3)), tmp_path, FrozenPrefix(), Looking()).train()
    assert seen == [True] * 4
