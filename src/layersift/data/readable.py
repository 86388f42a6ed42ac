"""What a model can read: tokens that it has an embedding for, and no more of them than it has places for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from layersift.compat import name_of
from layersift.data.examples import Example
from layersift.errors import LayersiftError, ModelError, frames_of, one_line
from layersift.models.architecture import embedded_tokens

# What the code of models and of torch raises; other errors are those of whoever looks on.
OF_MODELS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def require_embedded(model: Any, examples: Sequence[Example]) -> None:
    """Refuse samples with a token that the model has no embedding for.

    Raises:
        ModelError: there is one.
    """
    known = embedded_tokens(model)
    highest = max((max(ids) for e in examples for ids in (e.input_ids, e.target or ()) if ids), default=0)
    if known is not None and highest >= known:
        raise ModelError(
            f"{_named(model)}: its tokenizer gives token {highest}, but the model has embeddings for {known} only; "
            "they do not belong together, or tokens were added without model.resize_token_embeddings"
        )


def _named(model: Any) -> str:
    return name_of(model) or type(model).__name__


@contextmanager
def wrap_model_errors(
    model: Any, examples: Sequence[Example], smaller: str = "a smaller --max-length or batch"
) -> Iterator[None]:
    """While a model reads samples, whatever its code raises of them becomes one line.

    Errors of the place, such as a full disk, are no fault of model or samples and pass as they are; so do those of
    callbacks and the like, which did not come through PyTorch.

    Args:
        smaller: what the caller has to make less of.

    Raises:
        ModelError: a token that the model has no embedding for; or what the model raised.
    """
    require_embedded(model, examples)
    try:
        yield
    except (LayersiftError, OSError):
        raise
    except OF_MODELS as error:
        if not any(str(frame.f_globals.get("__name__")).startswith("torch.") for frame in frames_of(error)):
            raise
        longest = max(map(len, examples), default=0)
        images = any(example.image is not None for example in examples)
        what = "images" if images else f"samples of up to {longest} tokens"
        remedy = _remedy(error, "another size in its preprocessor_config.json" if images else smaller)
        raise ModelError(f"{_named(model)} does not run on these {what} ({one_line(error)}); {remedy}") from error


def _remedy(error: Exception, smaller: str) -> str:
    """What helps against what a model's code raises, as far as that says what it lacks."""
    said = str(error).lower()
    if "memory" in said or "alloc" in said:
        return f"{smaller} takes less memory"
    if any(word in said for word in ("dtype", "half", "bfloat16", "same type", "scalar type")):
        return "another --dtype may be what it takes"
    if any(word in said for word in ("index out of range", "size", "shape", "dimension", "position")):
        return f"see whether {smaller} is what it takes"
    return "its code may be of another version than transformers is; LAYERSIFT_TRACEBACK=1 shows where"
