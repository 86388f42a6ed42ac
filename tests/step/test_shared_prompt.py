"""A prompt that all rows begin with is computed once below the trained layers, and what is trained stays the same."""

import logging
from dataclasses import replace

import pytest
import torch
import transformers as tf
from peft import LoraConfig
from safetensors.torch import load_file

from layersift.config.train import TrainSettings
from layersift.data.examples import Example
from layersift.models.stacks import find_stack
from layersift.records.runs import RunRecord
from layersift.step.activation_cache import ActivationCache, dropouts, without
from layersift.step.prefix import frozen_prefix
from layersift.step.shared_prompt import SharedPrompt
from layersift.training import fit
from layersift.training.kept_states import shared_prompt
from prefixed import CHECKPOINTING, LORA, adapted, gradients
from tiny import DECODER, attach, selection_of, tiny
from training import Setting

PROMPT = (7, 9, 11, 7, 30, 31, 32, 33)
SHARING = TrainSettings(shared_prompt=True)
FAST = TrainSettings(epochs=3, learning_rate=1e-2, batch_size=4, activation_cache="off")
KINDS = ["llama", "gpt2", "gpt-neox", "gemma", "mistral", "qwen3", "qwen3-moe", "sliding", "gemma3"]


def model_of(kind, layers=(2, 3), checkpointing=None, window=12):
    """A tiny adapted model whose adapters are no zeros, without dropout."""
    if kind in ("sliding", "gemma3"):
        torch.manual_seed(0)
        mixed = ["sliding_attention", "full_attention"] * 2
        config = (
            tf.MistralConfig(**DECODER, sliding_window=window)
            if kind == "sliding"
            else tf.Gemma3TextConfig(**DECODER, sliding_window=window, layer_types=mixed)
        )
        base = (tf.MistralForCausalLM if kind == "sliding" else tf.Gemma3ForCausalLM)(config)
        model = attach(base, selection_of(base, layers), LORA)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    else:
        model = adapted(kind, layers, checkpointing)
    without(dropouts([model]))
    return model.train()


def batch(seed=0, begins=PROMPT):
    """Three rows of different lengths, right-padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (3, len(begins) + 9), generator=generator)
    ids[:, : len(begins)] = torch.tensor(begins)
    mask = torch.ones_like(ids)
    mask[0, -4:], mask[1, -1:] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : len(begins)] = -100
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


def counted(model):
    """Tokens that each block of the first stack has been called with so far."""
    blocks = find_stack(model.get_base_model()).blocks(model.get_base_model())
    seen = [0] * len(blocks)
    for place, block in enumerate(blocks):
        forward = block.forward

        def count(*args, place=place, forward=forward, **kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            seen[place] += states.shape[0] * states.shape[1]
            return forward(*args, **kwargs)

        block.forward = count
    return seen


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_whole_rows(kind):
    model = model_of(kind)
    seen = counted(model)
    with frozen_prefix(model):
        expected = [gradients(model, batch(seed)) for seed in range(3)]
    whole, seen[:] = list(seen), [0] * 4
    prompt = SharedPrompt(PROMPT)
    with frozen_prefix(model, prompt=prompt):
        ours = [gradients(model, batch(seed)) for seed in range(3)]
    for own, theirs in zip(ours, expected, strict=True):
        close(own, theirs)
    assert prompt.batches == 3
    size, tokens = 3, len(PROMPT) + 9
    # Once the prompt, two rows of the first batch as a whole, and the rest of each row.
    assert seen == [len(PROMPT) + 2 * tokens + 3 * size * (tokens - len(PROMPT))] * 2 + [3 * size * tokens] * 2
    assert whole == [3 * size * tokens] * 4
    close(gradients(model, batch(0)), expected[0])  # and nothing of it is left


@pytest.mark.parametrize("checkpointing", CHECKPOINTING[1:], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_checkpointing_too(kind, checkpointing):
    model = model_of(kind, checkpointing=checkpointing)
    with frozen_prefix(model):
        expected = [gradients(model, batch(seed)) for seed in range(2)]
    prompt = SharedPrompt(PROMPT)
    with frozen_prefix(model, prompt=prompt):
        ours = [gradients(model, batch(seed)) for seed in range(2)]
    for own, theirs in zip(ours, expected, strict=True):
        close(own, theirs)
    assert prompt.batches == 2


def left_padded():
    inputs = batch()
    return {name: value.flip(1) for name, value in inputs.items()}


def other_positions():
    inputs = batch()
    return inputs | {"position_ids": torch.arange(inputs["input_ids"].shape[1]).expand(3, -1) + 2}


@pytest.mark.parametrize(
    "inputs", [left_padded, other_positions, lambda: batch(begins=PROMPT[::-1]), lambda: batch(begins=())]
)
def test_a_batch_of_another_form_is_passed_as_ever(inputs):
    model = model_of("llama")
    with frozen_prefix(model):
        expected = gradients(model, inputs())
    prompt, cache = SharedPrompt(PROMPT), ActivationCache()
    with frozen_prefix(model, cache=cache, prompt=prompt):
        cache.begin([0, 1, 2], [17, 17, 17])
        ours = gradients(model, inputs())
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert prompt.batches == 0
    assert not cache._kept  # which would hold more than the rests


def test_what_differs_from_whole_rows_is_given_up(caplog):
    """A model that forgets the keys and values that it is called with."""
    model = model_of("llama")
    with frozen_prefix(model):
        expected = gradients(model, batch())
    backbone = model.get_base_model().base_model
    forward = backbone.forward

    def forgetful(*args, past_key_values=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length():
            kwargs["attention_mask"] = kwargs["attention_mask"][:, len(PROMPT) :]
            past_key_values = None
        return forward(*args, past_key_values=past_key_values, **kwargs)

    backbone.forward = forgetful
    prompt, cache = SharedPrompt(PROMPT), ActivationCache()
    with frozen_prefix(model, cache=cache, prompt=prompt), caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache.begin([0, 1, 2], batch()["attention_mask"].sum(dim=1).tolist())
            ours = gradients(model, batch())
            assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert (prompt.stopped, prompt.tokens, cache.served) == (True, 0, 0)
    assert sum("computed in each of them" in record.getMessage() for record in caplog.records) == 1


def test_a_window_that_holds_less_than_the_prompt_shares_nothing():
    model, rows = model_of("sliding", window=6), examples(8)
    assert shared_prompt(model, SHARING, rows, seq2seq=False) is None
    assert shared_prompt(model_of("sliding"), SHARING, rows, seq2seq=False).ids == PROMPT


def examples(number, begins=PROMPT):
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in torch.randint(2, 9, (number,), generator=generator).tolist():
        ids = (*begins, *torch.randint(34, 100, (length,), generator=generator).tolist())
        rows.append(Example(ids, (True,) * len(ids), (False,) * len(begins) + (True,) * length))
    return rows


@pytest.mark.parametrize(
    ("model", "rows", "settings", "said"),
    [
        (lambda: adapted("llama", (0, 2)), examples(8), SHARING, "no block is frozen"),
        (lambda: adapted("llama"), examples(8, ()), SHARING, "first 0 tokens in common"),
        (lambda: adapted("llama"), examples(1), SHARING, "tokens in common"),
        (lambda: adapted("bert"), examples(8), SHARING, "no decoder of text alone"),
        (lambda: adapted("llama"), examples(8), replace(SHARING, strategy="rotating:1@1"), "no block is frozen"),
        (lambda: dropping(), examples(8), replace(SHARING, prefix_dropout=True), "draws random numbers"),
        (lambda: looking_ahead(), examples(8), SHARING, "depend on the tokens behind it"),
        (lambda: model_of("sliding", window=6), examples(8), SHARING, "others where rows go on"),
    ],
    ids=["no-prefix", "other-rows", "one-row", "encoder", "rotating", "dropout", "looks-ahead", "short-window"],
)
def test_what_cannot_share_says_so_once(model, rows, settings, said, caplog):
    with caplog.at_level(logging.WARNING):
        assert shared_prompt(model(), settings, rows, seq2seq=False) is None
    [record] = [r for r in caplog.records if "computed in each of them" in r.getMessage()]
    assert said in record.getMessage()


def dropping():
    torch.manual_seed(0)
    base = tf.GPT2LMHeadModel(tiny("gpt2").config)
    assert base.config.resid_pdrop > 0
    return attach(base, selection_of(base, (2, 3)), LoraConfig(r=2, target_modules="all-linear")).train()


def looking_ahead():
    torch.manual_seed(0)
    config = tf.Gemma3TextConfig(**DECODER, use_bidirectional_attention=True, layer_types=["full_attention"] * 4)
    base = tf.Gemma3ForCausalLM(config)
    return attach(base, selection_of(base, (2, 3)), LORA).train()


def prompted(number=16):
    begins = " ".join(f"w{i}" for i in range(20, 32))
    return [{"prompt": f"{begins} w{i}", "response": f"w{i} #{' #' * (i % 5)} {i % 9}"} for i in range(number)]


@pytest.fixture
def made(monkeypatch):
    """The prompts and caches that trainings make."""
    seen = {"shared_prompt": [], "open_activation_cache": []}

    def watched(name, original):
        def keep(*arguments, **named):
            seen[name].append(original(*arguments, **named))
            return seen[name][-1]

        return keep

    for name in seen:
        monkeypatch.setattr(fit, name, watched(name, getattr(fit, name)))
    return seen


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("strategy", ["static", "freezing:1@0.3,2@0.6", "skipping:0.5"])
def test_a_training_ends_in_the_same_weights(strategy, llama_directory, tmp_path, made):
    settings = replace(FAST, strategy=strategy)
    layers = {"static": (1, 2), "freezing:1@0.3,2@0.6": (0, 1, 2, 3), "skipping:0.5": (1, 3)}[strategy]
    sides = {
        "whole": settings,
        "shared": replace(settings, shared_prompt=True),
        "kept": replace(settings, shared_prompt=True, activation_cache="auto"),
        "disk": replace(settings, shared_prompt=True, activation_cache=str(tmp_path / "c")),
    }
    records = {}
    for name, own in sides.items():
        setting = Setting(llama_directory, "instruction", prompted())
        selection = selection_of(setting.loaded.model, layers)
        records[name] = setting.train(tmp_path / name, own, selection=selection)
    expected = weights(tmp_path / "whole")
    for name in ("shared", "kept", "disk"):
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=0)  # a hundredth of one step
        assert records[name].train_loss == pytest.approx(records["whole"].train_loss, abs=1e-5)
    tokens = records["shared"].shared_prompt_tokens
    assert tokens >= 12
    assert [record.shared_prompt_tokens for record in records.values()] == [0, tokens, tokens, tokens]
    assert RunRecord.load(tmp_path / "kept").settings.shared_prompt
    assert made["shared_prompt"][0] is None
    assert all(prompt.batches for prompt in made["shared_prompt"][1:])
    cache = made["open_activation_cache"][2]
    assert cache.served
    rests = {row: len(example) - tokens for row, example in enumerate(setting.examples)}
    assert {row: len(states) for row, states in cache._kept.items()} == rests


def test_a_directory_of_whole_rows_is_not_that_of_rests(llama_directory, tmp_path, made):
    for name, shared in (("a", False), ("b", True), ("c", True)):
        settings = replace(FAST, activation_cache=str(tmp_path / "kept"), shared_prompt=shared)
        Setting(llama_directory, "instruction", prompted()).train(tmp_path / name, settings)
    assert [cache.served for cache in made["open_activation_cache"]] == [8, 8, 12]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    expected = weights(tmp_path / "a")
    for name in ("b", "c"):
        assert all(torch.allclose(expected[key], value, atol=1e-4) for key, value in weights(tmp_path / name).items())


def test_evaluations_between_steps_are_of_any_rows(llama_directory, tmp_path):
    model = model_of("llama")
    model.eval()
    inputs = batch(begins=PROMPT[:3])
    with torch.no_grad():
        expected = model(**inputs).logits
        with frozen_prefix(model, prompt=SharedPrompt(PROMPT)):
            model(**batch())
            assert torch.equal(model(**inputs).logits, expected)
