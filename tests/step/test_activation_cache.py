"""What the frozen prefix gives is kept by example, and training with it ends where training without it does."""

import errno
from dataclasses import replace

import pytest
import torch
import transformers as tf
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from layersift.config.train import TrainSettings
from layersift.data.examples import Example
from layersift.models.stacks import find_stack
from layersift.step import activation_cache
from layersift.step.activation_cache import ActivationCache, cache_key, dropouts
from layersift.step.prefix import frozen_prefix, prefix_blocks, prefix_dropouts
from layersift.training import fit
from layersift.training.kept_states import keepable_blocks
from prefixed import adapted, batch, gradients
from tiny import DECODER, SIZE, attach, selection_of
from training import Setting, answers
from words import tokenizer

FAST = TrainSettings(epochs=3, learning_rate=1e-2, batch_size=4, activation_cache="off")


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=2e-5) for k in a)


@pytest.fixture
def caches(monkeypatch):
    """The caches that trainings make."""
    made = []
    original = fit.open_activation_cache

    def watched(*arguments, **named):
        made.append(original(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(fit, "open_activation_cache", watched)
    return made


# Without test_train's generator, whose state the tests there depend on.
SENTENCES = [
    {"text": " ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(2 + i % 6)), "label": i % 2} for i in range(24)
]


def setting(kind, bert, llama):
    if kind == "text":
        return Setting(llama, "instruction", answers())
    return Setting(bert, "classification", SENTENCES, ("0", "1"))


@pytest.mark.parametrize("kind", ["text", "classes"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_the_cache_ends_where_training_without_it_does(
    kind, checkpointing, bert_directory, llama_directory, tmp_path, caches
):
    settings = replace(FAST, gradient_checkpointing=checkpointing, prefix_dropout=kind == "text")
    for name, cache in (("plain", "off"), ("kept", "auto"), ("disk", str(tmp_path / "c"))):
        setting(kind, bert_directory, llama_directory).train(tmp_path / name, replace(settings, activation_cache=cache))
    assert caches[0] is None
    steps = 4 if kind == "text" else 6
    assert [c.served for c in caches[1:]] == [2 * steps, 2 * steps]
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "kept"))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "disk"))


def test_a_directory_serves_later_trainings_from_their_first_epoch(llama_directory, tmp_path, caches):
    settings = replace(FAST, activation_cache=str(tmp_path / "c"))
    for name, rate in (("a", 1e-2), ("b", 1e-3)):
        again = Setting(llama_directory, "instruction", answers())
        again.train(tmp_path / name, replace(settings, learning_rate=rate))
    assert [c.served for c in caches] == [8, 12]
    other = Setting(llama_directory, "instruction", answers()[::-1])
    other.train(tmp_path / "c2", settings)
    assert caches[-1].served == 8
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_dropout_in_the_prefix_keeps_the_cache_away_unless_it_is_left_out(bert_directory, tmp_path, caches):
    task = Setting(bert_directory, "classification", SENTENCES, ("0", "1"))
    assert task.loaded.model.config.hidden_dropout_prob > 0
    task.train(tmp_path / "with", replace(FAST, activation_cache="auto", prefix_dropout=True))
    assert caches == [None]


def test_a_full_disk_stops_the_cache_and_not_the_training(llama_directory, tmp_path, caches, monkeypatch):
    written = []

    def full(tensors, path, metadata):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save(tensors, path, metadata)

    save = activation_cache.save_file
    monkeypatch.setattr(activation_cache, "save_file", full)
    Setting(llama_directory, "instruction", answers()).train(tmp_path / "plain", FAST)
    settings = replace(FAST, activation_cache=str(tmp_path / "c"))
    Setting(llama_directory, "instruction", answers()).train(tmp_path / "full", settings)
    assert "No space left" in caches[1].stopped
    assert len(list((tmp_path / "c").rglob("*.partial"))) == 0
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "full"))


def test_a_directory_takes_no_more_than_its_limit(tmp_path):
    cache = ActivationCache(
        tmp_path / "c", limit=2 * 3 * 5 * 4
    )  # two examples of three tokens, five numbers of four bytes
    for row in range(3):
        cache.begin([row], [3])
        cache.keep(torch.full((1, 3, 5), float(row)), 2)
    assert cache.stopped.endswith("its share of the disk is full")
    held = []
    for row in range(3):
        cache.begin([row], [3])
        held.append(bool(cache.shallowest))
    assert held == [True, True, False]
    cache.begin([1], [3])
    assert torch.equal(cache.serve(torch.zeros(1, 3, 5)), torch.full((1, 3, 5), 1.0))


def test_files_cut_short_are_left_out(tmp_path):
    (tmp_path / "000000-1.safetensors").write_bytes(b"not one")
    cache = ActivationCache(tmp_path)
    cache.begin([0], [3])
    assert not cache.shallowest
    cache.keep(torch.ones(1, 3, 4), 2)
    assert ActivationCache(tmp_path)._kept.keys() == {0}


def test_the_key_knows_model_cut_and_tokens():
    from contexts import examples

    some = examples("instruction")
    keys = {
        cache_key("a", 2, ("float32",), some),
        cache_key("b", 2, ("float32",), some),
        cache_key("a", 3, ("float32",), some),
        cache_key("a", 2, ("bfloat16",), some),
        cache_key("a", 2, ("float32",), some[::-1]),
    }
    assert len(keys) == 5


def test_a_served_batch_runs_no_frozen_block_and_gives_the_same_gradients():
    ordinary = gradients(adapted(), batch())
    model, cache = adapted(), ActivationCache()
    ran = []
    for block in model.get_base_model().model.layers[:2]:
        block.self_attn.q_proj.register_forward_hook(lambda *a: ran.append(1))
    with frozen_prefix(model, cache):
        for _ in range(2):
            cache.begin([7, 3, 5], [9, 9, 9])
            found = gradients(model, batch())
        assert ran == [1, 1]
        assert cache.served == 1
        cache.begin([7, 9, 5], [9, 9, 9])
        assert not cache.shallowest
    assert all(torch.allclose(found[name], ordinary[name], atol=1e-7) for name in ordinary)


def test_what_a_model_does_between_its_frozen_blocks_is_done_once():
    """DeBERTa convolves behind its first block, and its blocks hand on a tuple with nothing in its second place."""
    torch.manual_seed(0)
    config = tf.DebertaV2Config(
        **SIZE, relative_attention=True, pos_att_type=["p2c"], position_buckets=16, conv_kernel_size=3
    )
    base = tf.DebertaV2ForSequenceClassification(config)
    for module, name, _ in dropouts([base]):
        setattr(module, name, 0.0)
    model = attach(base, selection_of(base, [2, 3]), LoraConfig(r=4, target_modules=["query_proj"])).train()
    inputs = {**batch(), "labels": torch.tensor([0, 1, 0])}
    with frozen_prefix(model, cache := ActivationCache()):
        losses = []
        for _ in range(2):
            cache.begin([7, 3, 5], [9, 9, 9])
            losses.append(model(**inputs).loss.item())
    assert cache.served == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_blocks_that_hand_on_more_than_states_are_not_kept():
    cache = ActivationCache()
    cache.begin([0], [2])
    cache.keep((torch.ones(1, 2, 4), torch.ones(1)), 2)
    assert cache.stopped == "its blocks hand on more than hidden states"
    assert not cache.shallowest


def test_dropout_below_the_first_trained_block_and_nowhere_else():
    model = adapted("bert", (2, 3))
    assert len(prefix_blocks(model)) == 2
    assert prefix_dropouts(model)
    encoder = model.get_base_model().bert
    with frozen_prefix(model, dropout=False):
        assert not dropouts([encoder.embeddings, *encoder.encoder.layer[:2]])
        assert dropouts([encoder.encoder.layer[2]])
    assert dropouts([encoder.embeddings])
    assert not prefix_dropouts(adapted("llama", (2, 3)))
    assert len(prefix_blocks(adapted("llama", (0, 3)))) == 0


def kept_on_disk(directory):
    cache = ActivationCache(directory, limit=1e9)
    for rows in ([0, 1], [2, 3]):
        cache.begin(rows, [3, 2])
        cache.keep(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(rows[0])), 2)


def flip_one_bit(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def rewritten(change):
    """As somebody would who has safetensors: the file is whole, its tensors are not ours."""

    def damage(file):
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        save_file({name: change(states).contiguous() for name, states in load_file(file).items()}, file, about)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        flip_one_bit,
        rewritten(torch.zeros_like),
        rewritten(lambda states: states * float("nan")),
        rewritten(lambda states: states[:1]),
        rewritten(lambda states: states.to(torch.bfloat16)),
        rewritten(lambda states: states.reshape(-1, 2)),
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
    ],
)
def test_damaged_states_are_left_out_and_computed_again(damage, tmp_path, caplog):
    kept_on_disk(tmp_path)
    assert ActivationCache(tmp_path)._kept.keys() == {0, 1, 2, 3}
    assert not caplog.text
    damage(min(tmp_path.glob("*.safetensors")))
    cache = ActivationCache(tmp_path, limit=1e9)
    assert {2, 3} <= cache._kept.keys() < {0, 1, 2, 3}
    assert "1 files of kept states are damaged; what they held is computed again" in caplog.text
    cache.begin([0, 1], [3, 2])
    assert not cache.shallowest
    cache.keep(torch.ones(2, 3, 4), 2)
    assert cache.shallowest


NOISY = {
    "layerdrop": lambda: tf.BartForCausalLM(
        tf.BartConfig(
            vocab_size=120, d_model=32, decoder_layers=4, decoder_attention_heads=2, decoder_ffn_dim=64, dropout=0.0,
            attention_dropout=0.0, activation_dropout=0.0, decoder_layerdrop=0.25, is_decoder=True,
            is_encoder_decoder=False,
        )
    ),
    "jitter_noise": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(
            vocab_size=120, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=64, num_local_experts=2, router_jitter_noise=0.25,
        )
    ),
    "dropout": lambda: tf.BartForCausalLM(
        tf.BartConfig(
            vocab_size=120, d_model=32, decoder_layers=4, decoder_attention_heads=2, decoder_ffn_dim=64, dropout=0.25,
            attention_dropout=0.0, activation_dropout=0.0, is_decoder=True, is_encoder_decoder=False,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
def test_noise_that_is_no_dropout_of_units_is_seen_and_can_be_left_out(name):
    torch.manual_seed(0)
    model = NOISY[name]().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    find_stack(model).blocks(model)[2].requires_grad_(True)
    assert any(name in attribute and value == 0.25 for _, attribute, value in prefix_dropouts(model))
    ids = torch.arange(12).reshape(1, 12)
    below = find_stack(model).blocks(model)[2]
    entered = []
    below.register_forward_pre_hook(lambda m, args: entered.append(args[0].clone()))

    def all_alike():
        entered.clear()
        for seed in range(12):
            torch.manual_seed(seed)
            model(input_ids=ids)
        return all(torch.equal(states, entered[0]) for states in entered)

    assert not all_alike()
    with frozen_prefix(model, dropout=False):
        assert not prefix_dropouts(model)
        # Layers above are still left out at random: only what enters the trained block is looked at.
        assert all_alike()


def test_why_nothing_is_kept_is_told_to_those_who_asked_for_it(bert_directory, tmp_path, caplog):
    trained = Setting(bert_directory, "classification", SENTENCES, ("0", "1"))
    trained.train(tmp_path / "a", replace(FAST, epochs=1, prefix_dropout=True, activation_cache=str(tmp_path / "kept")))
    assert "what the frozen blocks give is not kept: Dropout draws random numbers there (p 0.1)" in caplog.text
    assert not (tmp_path / "kept").exists()


def test_blocks_that_share_keys_and_values_are_not_skipped(tmp_path, caplog):
    config = tf.Gemma4TextConfig(
        vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, global_head_dim=16, num_kv_shared_layers=2, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=120, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    model = tf.Gemma4ForCausalLM(config)
    model.config.architectures = ["Gemma4ForCausalLM"]
    model.save_pretrained(tmp_path / "model")
    tokenizer("decoder", chat=True).save_pretrained(tmp_path / "model")
    trained = Setting(str(tmp_path / "model"), "instruction", answers())
    settings = replace(FAST, epochs=2, target_modules="all-linear", activation_cache=str(tmp_path / "kept"))
    trained.train(tmp_path / "run", settings, selection=selection_of(trained.loaded.model, [3]))
    assert "blocks above use keys and values of blocks below" in caplog.text
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def looped(first, last, passes=2):
    """Llama whose blocks ``first`` to ``last`` run again as a group, and adapters on the last one."""
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER)).eval()
    blocks = list(model.model.layers)

    running = []

    def again(module, args, kwargs, output):
        if running:
            return output
        running.append(True)
        for _ in range(passes - 1):
            for block in blocks[first : last + 1]:
                output = block(output, *args[1:], **{k: v for k, v in kwargs.items() if k != "hidden_states"})
        running.clear()
        return output

    blocks[last].register_forward_hook(again, with_kwargs=True)
    return attach(model, selection_of(model, [3]), LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize(("first", "last", "kept"), [(0, 0, 0), (1, 2, 0), (3, 3, 3)])
def test_nothing_is_kept_where_a_block_of_the_prefix_runs_more_than_once(first, last, kept):
    examples = [Example(tuple(range(5, 14)), (True,) * 9, (False,) * 6 + (True,) * 3)]
    blocks, why = keepable_blocks(looped(first, last), TrainSettings(epochs=2), examples, seq2seq=False)
    assert blocks == kept
    assert (why is None) == bool(kept)
    if not kept:
        assert "runs 2 times in a pass" in why


def test_nothing_is_kept_of_blocks_that_work_on_several_streams():
    """Gemma 3n without shared keys: (K, B, T, d) is no state (T, d) a sample."""
    torch.manual_seed(0)
    config = tf.Gemma3nTextConfig(
        **DECODER,
        vocab_size_per_layer_input=120,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )
    model = tf.Gemma3nForCausalLM(config)
    adapted_model = attach(model, selection_of(model, [3]), LoraConfig(r=2, target_modules=["q_proj"]))
    examples = [Example(tuple(range(5, 14)), (True,) * 9, (False,) * 6 + (True,) * 3)]
    before = torch.get_rng_state()
    blocks, why = keepable_blocks(adapted_model, TrainSettings(epochs=2), examples, seq2seq=False)
    assert blocks == 0
    assert "several streams" in why
    assert torch.equal(torch.get_rng_state(), before)
