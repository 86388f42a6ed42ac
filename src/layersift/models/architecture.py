"""What stages ask of any model's structure, each question answered in one place."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)


def is_encoder_decoder(model_or_config: Any) -> bool:
    """Whether an encoder reads and a decoder writes."""
    config = getattr(model_or_config, "config", model_or_config)
    return bool(getattr(config, "is_encoder_decoder", False))


def writes_alone(config: Any) -> bool:
    """Whether transformers knows the architecture as one that writes text, and not as one that fills gaps as well.

    Bloom, MPT, Mamba, RWKV and others mark no module of theirs as causal. Of those that are both (BERT, say), the
    configuration tells.
    """
    kind = getattr(config, "model_type", None)
    # A class that is called a decoder (BertGeneration's) is one where its configuration says so.
    named = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, "Decoder"))
    return not named.endswith("Decoder") and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def unwrap_compiled(model: Any) -> Any:
    """The model inside of torch.compile's wrapper, whose modules are the same and have their own names."""
    return getattr(model, "_orig_mod", model)


def is_linear(module: nn.Module) -> bool:
    """A matrix that maps hidden states, GPT-2's transposed one included, as PEFT counts them for ``all-linear``.

    Routers that are a kind of linear layer in their model's own code (Llama 4's, PhiMoE's) return other things than
    what a matrix gives; no adapter can be added to those.
    """
    kind = type(module)
    router = kind.forward is not nn.Linear.forward and re.search("Router|Gate", kind.__name__) is not None
    return (isinstance(module, nn.Linear) and not router) or kind.__name__ == "Conv1D"


def no_cache(model: nn.Module) -> dict[str, Any]:
    """Keys and values are needed for generation only; keeping them would cost memory that grows with the text."""
    config = getattr(model, "config", None)
    return {"use_cache": False} if hasattr(config, "use_cache") else {}


# Architectures whose table of positions begins behind the padding token's id.
FROM_PADDING = re.compile(r"roberta|camembert|longformer|mpnet|data2vec-text|ibert|luke|lilt|layoutlmv3|^esm$|xmod|mra")


def longest_text(config: Any) -> int | None:
    """How many tokens the model has places for, or None where its configuration sets no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    places = getattr(text, "max_position_embeddings", None)
    if isinstance(places, bool) or not isinstance(places, int) or places < 1:
        return None
    if FROM_PADDING.search(str(getattr(text, "model_type", ""))):
        places -= (getattr(text, "pad_token_id", None) or 0) + 1
    return places if places > 0 else None


def embedded_tokens(model: Any) -> int | None:
    """How many tokens a model has an embedding for; None where it embeds none, or cannot say."""
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            return int(embeddings.num_embeddings)
    return None
