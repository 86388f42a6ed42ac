"""Tiny random models, built from the real config classes of transformers."""

import torch
import transformers as tf

from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import Selection
from layersift.represent.read import Batching, represent

SIZE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "vocab_size": 120,
    "max_position_embeddings": 96,
}
DECODER = {**SIZE, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _vision():
    return tf.CLIPVisionConfig(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        projection_dim=24,
    )


CONFIGS = {
    "bert": lambda: tf.BertConfig(**SIZE),
    "roberta": lambda: tf.RobertaConfig(**SIZE, pad_token_id=1),
    "deberta-v2": lambda: tf.DebertaV2Config(
        **SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, share_att_key=True
    ),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_head=4, n_layer=4, n_inner=48, vocab_size=120, n_positions=96),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SIZE),
    "llama": lambda: tf.LlamaConfig(**DECODER),
    "mistral": lambda: tf.MistralConfig(**DECODER),
    "gemma": lambda: tf.GemmaConfig(**DECODER),
    "qwen3": lambda: tf.Qwen3Config(**DECODER),
    "t5": lambda: tf.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=4,
        vocab_size=120,
        decoder_start_token_id=0,
    ),
    "llava": lambda: tf.LlavaConfig(
        vision_config=_vision(), text_config=tf.LlamaConfig(**DECODER), image_token_index=119
    ),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(
        **DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1
    ),
    "jamba": lambda: tf.JambaConfig(
        **DECODER,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=9,
        expert_layer_offset=8,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
}
CLASSES = {
    "bert": tf.BertForSequenceClassification,
    "roberta": tf.RobertaForSequenceClassification,
    "deberta-v2": tf.DebertaV2ForSequenceClassification,
    "gpt2": tf.GPT2LMHeadModel,
    "gpt-neox": tf.GPTNeoXForCausalLM,
    "llama": tf.LlamaForCausalLM,
    "mistral": tf.MistralForCausalLM,
    "gemma": tf.GemmaForCausalLM,
    "qwen3": tf.Qwen3ForCausalLM,
    "t5": tf.T5ForConditionalGeneration,
    "llava": tf.LlavaForConditionalGeneration,
    "qwen3-moe": tf.Qwen3MoeForCausalLM,
    "jamba": tf.JambaForCausalLM,
}


def tiny(name, cls=None, seed=0):
    """A tiny random model of the named architecture, in evaluation mode."""
    torch.manual_seed(seed)
    return (cls or CLASSES[name])(CONFIGS[name]()).eval()


def read_all(model, stack, examples, positions, pad_id=0, token_budget=None, **settings):
    """Representations by position, in batches of a size."""
    return represent(model, stack, examples, positions, batching=Batching(pad_id, token_budget), **settings)


def read_at(model, stack, examples, position, **settings):
    """Representations at one position."""
    return read_all(model, stack, examples, position, **settings)[position.name]


def selection_of(model, layers, tower=None):
    """A selection of these layers, as if it had been scored."""
    stack = find_stack(model, tower)
    return Selection(
        model=type(model).__name__,
        model_revision="test",
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=tuple(0.1 * i for i in range(stack.num_layers)),
        undefined={},
        ranking=tuple(reversed(range(stack.num_layers))),
        selected_layers=tuple(layers),
        rule="test",
        position="mean",
        metric="cka",
        num_samples=8,
        seed=0,
        data=DataRecord(),
        top_dimension_share=(0.5,) * stack.num_layers,
        seconds={},
    )


def attach(model, selection, config, **settings):
    """The selection's adapters on a model."""
    return selection.attach(model, config, **settings)
