"""A tiny model of any text architecture that transformers registers, from its own config and model classes."""

import warnings

import torch
import transformers as tf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

VOCABULARY = 120
LAYERS = 4
# By what they say, whatever configs call it; set where the default config has the field.
SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim", "model_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "d_embed", "attention_hidden_size", "lru_width"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), LAYERS
    ),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"), 48),
    **dict.fromkeys(("hidden_dim", "d_inner", "ffn_hidden_size", "intermediate_size_mlp", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 128),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_top_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_state_dim"), 4),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id", "sep_token_id"), 2),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 16),
}

# Where single fields have to fit one another.
FITTING = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "attn_layer_indices": [1, 3]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
}
# They read images or sound as well.
NOT_TEXT = {
    "tapas",
    "audioflamingo3", "dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_assistant",
    "gemma4_unified", "gemma4_unified_assistant", "git", "glmasr", "got_ocr2", "granite_speech",
    "granite_speech_plus", "layoutlmv2", "llama4", "mllama", "modernvbert", "moss_transcribe_diarize",
    "musicflamingo", "musicgen", "musicgen_melody", "nemo_speechlm", "omniasr", "perceiver", "phi4_multimodal",
    "qwen2_audio", "qwen3_5", "qwen3_5_moe", "qwen3_asr", "qwen4_exp", "speech_to_text", "t5gemma2",
    "ultravbert", "vibevoice_asr", "whisper",
}  # fmt: skip

# Their reference code loops in Python, or their smallest size is large: minutes for what takes others a second.
TOO_SLOW = {"blt", "encoder-decoder", "falcon_h1", "kimi_linear", "t5gemma", "voxtral", "voxtral_realtime"}


def kinds():
    """The kind of task of every text architecture: writing where it writes, else classification."""
    found = dict.fromkeys(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "classification")
    masked = {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in found and _also_masked(name)}
    found |= dict.fromkeys([n for n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if n not in masked], "instruction")
    found |= dict.fromkeys(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "seq2seq")
    return {name: kind for name, kind in sorted(found.items()) if name not in NOT_TEXT}


def _also_masked(name):
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return name in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def class_of(model_type, kind):
    mapping = {
        "classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "instruction": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }[kind]
    return getattr(tf, mapping[model_type])


def tiny_config(model_type):
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    given = {
        name: value
        for name, value in SIZES.items()
        if not isinstance(getattr(cls, name, None), property) and hasattr(default, name)
    }
    if hasattr(default, "kv_lora_rank") and "num_key_value_heads" in given:
        given["num_key_value_heads"] = given["num_attention_heads"]  # latent attention has no groups
    if hasattr(default, "rotary_dim"):
        given["rotary_dim"] = 4
    given |= FITTING.get(model_type, {})
    config = cls(**given)
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = SIZES["decoder_start_token_id"]
    return config


def tiny_model(model_type, kind, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_config(model_type)
        torch.manual_seed(seed)
        return class_of(model_type, kind)(config).float().eval()
