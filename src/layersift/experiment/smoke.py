"""Try a recipe out: the whole path with the real classes at a tiny size, on rows made up in the recipe's columns.

Nothing that comes of it says anything about the recipe's results; it says that the recipe runs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from layersift.config.recipe import EvaluateSettings, ModelSource, Recipe
from layersift.config.variants import Smoke
from layersift.errors import LayersiftError, unknown_name
from layersift.files import write_bytes, write_text

ROWS = {"train": 24, "test": 12}
IMAGE_SIDE, PATCH = 28, 14
WORDS = [f"word{i}" for i in range(60)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
SIZE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 514,
}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _encoder(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**SIZE, **SPECIAL_IDS, **settings)


def _decoder(name: str, heads: int) -> Any:
    """Grouped attention and gates as in the real one, where it has them."""
    return _encoder(name, num_key_value_heads=heads, head_dim=8)


def _llava() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
    )
    return transformers.LlavaConfig(vision_config=vision, text_config=_decoder("Llama", 4), image_token_id=4)


DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
CONFIGS: dict[str, Callable[[], tuple[Any, str]]] = {
    "roberta": lambda: (_encoder("Roberta"), "RobertaForMaskedLM"),
    "deberta-v2": lambda: (_encoder("DebertaV2", share_att_key=True, **DISENTANGLED), "DebertaV2Model"),
    "llama": lambda: (_decoder("Llama", 4), "LlamaForCausalLM"),
    "mistral": lambda: (_decoder("Mistral", 2), "MistralForCausalLM"),
    "gemma": lambda: (_decoder("Gemma", 4), "GemmaForCausalLM"),
    "llava": lambda: (_llava(), "LlavaForConditionalGeneration"),
}


INPUTS = "-smoke-inputs"  # behind an output's name: where what stands in for model and data goes


def smoke_notice(recipe: Recipe) -> str:
    """What a table of a recipe that :func:`shrink` made begins with; nothing for others."""
    if recipe.smoke is None or not Path(recipe.model.name).parent.name.endswith(INPUTS):
        return ""
    return "A smoke run: a tiny random model on made-up rows, so that no figure here means anything. "


def shrink(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe at a size for two cores and two minutes; what stands in for model and data goes into ``directory``.

    Raises:
        LayersiftError: the recipe does not say what would stand in for its model.
    """
    if recipe.smoke is None:
        raise LayersiftError("this recipe has no 'smoke' section; it is to name a model_type")
    _save_model(recipe.smoke, directory / "model")
    files = {split: _save_rows(recipe, directory / f"{split}.jsonl", count) for split, count in ROWS.items()}
    sources = {name: str(files["test"]) for name in recipe.evaluate.sources()}
    tests: Any = sources.get("", sources) or str(files["test"])
    return replace(
        recipe,
        model=ModelSource(str(directory / "model"), device="cpu"),
        data=replace(recipe.data, data=str(files["train"]), max_length=min(recipe.data.max_length, 96)),
        output=f"{recipe.output}-smoke",
        select=replace(recipe.select, max_samples=16),
        train=replace(
            recipe.train,
            max_samples=16,
            epochs=1,
            batch_size=min(recipe.train.batch_size, 8),
            gradient_accumulation=min(recipe.train.gradient_accumulation, 2),
            rank=4,
            alpha=4,
            precision=None,
        ),
        evaluate=EvaluateSettings(
            data=tests,
            max_samples=8,
            metrics=recipe.evaluate.metrics,
            exact_match=min(recipe.evaluate.exact_match, 2),
            max_new_tokens=4,
        ),
        compare=replace(
            recipe.compare,
            random=min(2, recipe.compare.random),
            sizes=sorted({min(size, SIZE["num_hidden_layers"] - 1) for size in recipe.compare.sizes}),
        ),
        variants=tuple(dict.fromkeys(_short_mask(variant) for variant in recipe.variants)),
    )


def _short_mask(variant: str) -> str:
    """A mask of the real number of layers means nothing on four; its first, a middle and the last digit stay."""
    name, equals, mask = variant.partition("=")
    if not equals:
        return f"top-{min(int(name[4:]), SIZE['num_hidden_layers'])}" if name.startswith("top-") else variant
    short = mask[0] + mask[len(mask) // 3] + mask[2 * len(mask) // 3] + mask[-1]
    return f"{name}={short if '1' in short else '0001'}"


def _save_model(smoke: Smoke, directory: Path) -> None:
    if smoke.model_type not in CONFIGS:
        raise unknown_name("model type of a smoke run", smoke.model_type, CONFIGS)
    if directory.exists():
        return
    config, architecture = CONFIGS[smoke.model_type]()
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    model.save_pretrained(directory)
    tokenizer = _tokenizer(with_ends="ForCausal" not in architecture)
    if smoke.model_type != "llava":
        tokenizer.save_pretrained(directory)
        return
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(directory)


def _tokenizer(with_ends: bool) -> Any:
    """One token a word, letter or digit; ``with_ends`` puts <s> and </s> around a text, as encoders want it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:#"]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *letters])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if with_ends:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=512,
    )


def _save_rows(recipe: Recipe, path: Path, count: int) -> Path:
    """Made-up rows that carry something to learn: the class, number or answer follows from the first word."""
    generator = np.random.default_rng(len(path.name))
    rows = [_row(recipe, generator, i, path) for i in range(count)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(recipe: Recipe, generator: np.random.Generator, index: int, path: Path) -> dict[str, Any]:
    data, classes = recipe.data, recipe.smoke.classes if recipe.smoke else 2
    words = [WORDS[int(i)] for i in generator.integers(0, len(WORDS), 12)]
    first, second = " ".join([WORDS[index % len(WORDS)], *words[:5]]), " ".join(words[6:])
    if data.task == "classification":
        values: dict[str | None, Any] = {data.label_column: index % classes}
    elif data.task == "regression":
        values = {data.label_column: index % 6 + 0.5}
    elif data.choices_column:
        values = {data.choices_column: [words[0], words[1], words[2]], data.response_column: index % 3}
    else:
        values = {data.response_column: f"{second} {index}"}
    if data.image_column:
        values[data.image_column] = _save_image(generator, path.with_name(f"{path.stem}{index}.png"))
    values |= {data.text_column: first, data.text_pair_column: second, data.prompt_column: first}
    return {name: value for name, value in values.items() if name}


def _save_image(generator: np.random.Generator, path: Path) -> str:
    from PIL import Image

    encoded = io.BytesIO()
    pixels = generator.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, "png")
    write_bytes(path, encoded.getvalue())
    return path.name
