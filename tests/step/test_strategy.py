"""What a strategy trains, how, and what it leaves as it was."""

from dataclasses import replace

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from layersift.config.train import TrainSettings, parse_strategy
from layersift.errors import LayersiftError, ModelError
from layersift.models.load import load_model
from layersift.models.stacks import find_stack
from layersift.step.strategy import TrainingStrategy
from layersift.training import fit
from prefixed import CHECKPOINTING, adapted, batch, gradients, runs
from tiny import selection_of
from training import Setting, answers

FAST = TrainSettings(epochs=4, learning_rate=1e-2, batch_size=4, activation_cache="off", target_modules="q_proj,v_proj")
STAIR = "freezing:1@0.125,2@0.375,3@0.65"  # of sixteen steps at steps 2, 6 and 11, all within an epoch of four
CONVERGING = "converging:0.98@0.125"  # looks before every second of sixteen steps
KINDS = ["freezing", STAIR, "rotating:2@3", "skipping:0.5", CONVERGING]


class Hand(tf.TrainerCallback):
    """A strategy by hand: parameters are frozen and freed, and nothing else is done."""

    followed = None

    def __init__(self, strategy):
        self.strategy = parse_strategy(strategy)
        self.seen = []

    def on_step_begin(self, args, state, control, **kwargs):
        model = kwargs["model"]
        wanted = self.strategy.trained(range(4), 4, state.global_step, state.max_steps, args.seed)
        self.seen.append(wanted)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                layer = int(name.split("layers.")[1].split(".")[0])
                parameter.requires_grad_(layer in wanted)
                parameter.grad = None


@pytest.fixture
def setting(llama_directory):
    def made():
        found = Setting(llama_directory, "instruction", answers())
        found.selection = selection_of(found.loaded.model, [0, 1, 2, 3])
        return found

    return made


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=2e-5) for k in a)


def make_selection(setting, output, settings, monkeypatch):
    hand = Hand(settings.strategy)
    with monkeypatch.context() as patched:
        patched.setattr(fit.TrainingStrategy, "with_cache", lambda *given: hand)
        setting.train(output, replace(settings, activation_cache="off"))
    return hand


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("strategy", [STAIR, "rotating:2@3"])
def test_a_training_ends_in_the_weights_of_one_that_freezes_by_hand(
    strategy, checkpointing, setting, tmp_path, monkeypatch
):
    settings = replace(FAST, strategy=strategy, gradient_checkpointing=checkpointing)
    hand = make_selection(setting(), tmp_path / "hand", settings, monkeypatch)
    assert len(set(hand.seen)) >= 4
    record = setting().train(tmp_path / "ours", settings)
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "hand")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    setting().train(tmp_path / "static", replace(settings, strategy="static"))
    assert not same(ours, weights(tmp_path / "static"))
    assert record.trainable_parameters == sum(w.numel() for w in ours.values())
    assert record.settings.strategy == strategy


def test_converging_comes_to_a_freezing_strategy_and_to_its_very_weights(setting, tmp_path):
    """Looks draw nothing and change nothing: the freezing cut that it came to, which does not look, trains the same."""
    record = setting().train(tmp_path / "converging", replace(FAST, strategy=CONVERGING))
    assert record.strategy_followed.startswith("freezing:")
    setting().train(tmp_path / "freezing", replace(FAST, strategy=record.strategy_followed))
    ours, theirs = weights(tmp_path / "converging"), weights(tmp_path / "freezing")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    never = setting().train(tmp_path / "never", replace(FAST, strategy="converging:0.99999999@0.125"))
    setting().train(tmp_path / "static", replace(FAST, strategy="static"))
    assert never.strategy_followed == "static"
    ours, theirs = weights(tmp_path / "never"), weights(tmp_path / "static")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


@pytest.mark.parametrize("strategy", [STAIR, "freezing:1@0.25,2@0.5", "skipping:0.5", CONVERGING])
def test_what_is_kept_moves_with_the_cut(strategy, setting, tmp_path, monkeypatch):
    caches, original, blocks = [], fit.open_activation_cache, []

    def watched(*arguments, **named):
        caches.append(original(*arguments, **named))
        return caches[-1]

    monkeypatch.setattr(fit, "open_activation_cache", watched)
    made, settings = [setting(), setting()], replace(FAST, strategy=strategy)
    for one in made if strategy == "skipping:0.5" else ():
        one.selection = selection_of(one.loaded.model, [1, 3])
    made[0].train(tmp_path / "plain", settings)
    kept = made[1]
    counts = [0, 0, 0, 0]
    for i, block in enumerate(find_stack(kept.loaded.model).blocks(kept.loaded.model)):
        blocks.append(
            block.mlp.register_forward_hook(lambda *given, i=i: counts.__setitem__(i, counts[i] + 1), prepend=True)
        )
    kept.train(tmp_path / "kept", replace(settings, activation_cache="auto"))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "kept"))
    assert caches[0] is None
    assert caches[1].served > 0
    assert caches[1].stopped is None
    counts = [count - 1 for count in counts]  # of a try whether blocks run one behind another
    steps = 16
    if strategy == CONVERGING:
        looks = 7 * 4  # of all sixteen rows, in four batches
        counts = [count - looks for count in counts]
    assert counts[3] == steps
    assert counts[0] < steps  # what lies below the cut is not run again and again
    if strategy == "freezing:1@0.25,2@0.5":
        # An epoch of four steps on all; one that fills below 1; then each example goes through block 1 once more.
        assert counts == [8, 12, 16, 16]


@pytest.mark.parametrize("strategy", KINDS)
def test_an_interrupted_training_resumes_to_the_same_weights(strategy, setting, tmp_path):
    settings = replace(FAST, strategy=strategy)
    start = setting()
    if strategy.startswith("skipping"):
        start.selection = selection_of(start.loaded.model, [0, 3])
    start.train(tmp_path / "whole", settings)

    class KilledError(Exception):
        pass

    for stop in (5, 9, 13):
        done = []

        def kill(steps, done=done, stop=stop):
            done.append(steps)
            if sum(done) == stop:
                raise KilledError

        output = tmp_path / f"at-{stop}"
        for resume in (False, True):
            start.loaded = load_model(start.source, "instruction", 1)
            if resume:
                start.train(output, settings, resume=True)
            else:
                with pytest.raises(KilledError):
                    start.train(output, settings, progress=kill)
        a, b = weights(tmp_path / "whole"), weights(output)
        assert all(torch.equal(a[name], b[name]) for name in a)


class Arguments:
    seed, world_size = 0, 1


class State:
    def __init__(self, step, steps=10):
        self.global_step, self.max_steps = step, steps


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_gradients_equal_plain_autograds_at_every_cut(name, checkpointing):
    model, callback = adapted(name, range(4), checkpointing), TrainingStrategy("freezing:1@0.1,2@0.2,3@0.3")
    inputs = batch() if name != "bert" else {**batch(), "labels": torch.tensor([0, 1, 1])}
    callback.on_train_begin(Arguments, State(0), None, model=model)

    def of_a_batch():
        found = gradients(model, inputs)
        callback.on_substep_end(Arguments, State(cut), None, model=model)  # as a Trainer tells behind each
        return found

    for cut in range(4):
        callback.on_step_begin(Arguments, State(cut), None, model=model)
        forward, backward = runs(model, of_a_batch)
        found = of_a_batch()
        assert backward == [i >= cut for i in range(4)]
        again = 2 if checkpointing else 1
        assert forward == [again if i >= cut else 1 for i in range(4)]
        callback._leave()
        wanted = of_a_batch()
        callback._enter(model)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    callback.on_train_end(Arguments, State(4), None)
    assert gradients(model, inputs).keys() > found.keys()  # all are trained again


def test_the_state_of_what_is_never_trained_again_is_freed():
    model, callback = adapted("llama", range(4)), TrainingStrategy("freezing:2@0.5")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    callback.on_train_begin(Arguments, State(0), None, model=model, optimizer=optimizer)
    gradients(model, batch())
    optimizer.step()
    everything = len(optimizer.state)
    callback.on_step_begin(Arguments, State(4), None, model=model, optimizer=optimizer)
    assert len(optimizer.state) == everything
    callback.on_step_begin(Arguments, State(5), None, model=model, optimizer=optimizer)
    assert len(optimizer.state) == everything / 2
    assert all(parameter.requires_grad for parameter in optimizer.state)


def handing_past(model, inputs, dropped):
    """Gradients where dropped blocks hand theirs past themselves, by plain autograd alone."""
    blocks = model.get_base_model().model.layers
    handles = [
        blocks[i].register_forward_hook(lambda m, args, output: args[0] + (output - args[0]).detach()) for i in dropped
    ]
    found = gradients(model, inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_dropped_block_hands_its_gradient_past_itself(checkpointing):
    model, callback = adapted("llama", (0, 3), checkpointing), TrainingStrategy("skipping:1")
    inputs, loss = batch(), adapted("llama", (0, 3))(**batch()).loss
    callback.on_train_begin(Arguments, State(0), None, model=model)
    callback.on_step_begin(Arguments, State(0), None, model=model)
    assert list(callback._passed.values()) == [True, True]
    torch.testing.assert_close(model(**inputs).loss, loss, rtol=0, atol=0)
    found = {}
    forward, _ = runs(model, lambda: found.update(gradients(model, inputs)))
    assert forward == ([2, 1, 1, 2] if checkpointing else [1, 1, 1, 1])
    wanted = handing_past(adapted("llama", (0, 3)), inputs, (1, 2))
    plain = gradients(adapted("llama", (0, 3)), inputs)
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], atol=1e-6, rtol=1e-4)
        assert torch.allclose(gradient, plain[key], atol=1e-7) == ("layers.3." in key)
    model.eval()
    callback.on_train_end(Arguments, State(1), None)
    assert not any("forward" in vars(block) for block in model.get_base_model().model.layers)


def test_a_share_of_the_steps_is_dropped_and_none_that_carries_adapters():
    model, callback = adapted("llama", (1, 3)), TrainingStrategy("skipping:0.25")
    callback.on_train_begin(Arguments, State(0), None, model=model)
    drawn = []
    for step in range(400):
        callback.on_step_begin(Arguments, State(step), None, model=model)
        drawn.append(list(callback._passed.values()))
    assert all(len(step) == 1 for step in drawn)  # block 2; block 0 is below all adapters
    assert 70 <= sum(step[0] for step in drawn) <= 130
    callback.on_step_begin(Arguments, State(3), None, model=model)
    assert list(callback._passed.values()) == drawn[3]


def test_what_a_strategy_cannot_be_followed_on_is_refused():
    class Two(Arguments):
        world_size = 2

    with pytest.raises(LayersiftError, match="one process trains; 2 were started"):
        TrainingStrategy("freezing").on_train_begin(Two, State(0), None, model=adapted("llama", range(4)))
    plain = adapted("llama", range(4))
    plain.requires_grad_(False)
    with pytest.raises(ModelError, match="0 stacks of blocks carry adapters"):
        TrainingStrategy("freezing").on_train_begin(Arguments, State(0), None, model=plain)
