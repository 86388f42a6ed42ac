"""Small images and models that read them, saved as users have them."""

import numpy as np
import torch
import transformers as tf
from PIL import Image
from sklearn.datasets import load_digits

from tiny import tiny
from words import tokenizer

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def digit(index):
    """Picture and class of one of scikit-learn's digits."""
    digits = load_digits()
    pixels = (digits.images[index] * 15.9).astype(np.uint8)
    return Image.fromarray(pixels).resize((16, 16)), int(digits.target[index])


def digit_folder(directory, indices):
    """A folder a class, as image datasets are kept."""
    for index in indices:
        picture, label = digit(index)
        place = directory / f"digit{label}"
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{index}.png")
    return directory


def image_processor():
    return tf.CLIPImageProcessorPil(
        size={"height": 16, "width": 16}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def save_vit(directory, kind="vit"):
    size = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    config, cls = {
        "vit": (tf.ViTConfig(**size, intermediate_size=48), tf.ViTForImageClassification),
        "dinov2": (tf.Dinov2Config(**size, mlp_ratio=2), tf.Dinov2ForImageClassification),
    }[kind]
    config.architectures = [cls.__name__]
    cls(config).save_pretrained(directory)
    image_processor().save_pretrained(directory)
    return str(directory)


def save_llava(directory):
    model = tiny("llava")
    model.config.architectures = [type(model).__name__]
    words = tokenizer("decoder")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    model.config.image_token_index = words.convert_tokens_to_ids("<image>")
    model.save_pretrained(directory)
    processor = tf.LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(directory)
    return str(directory)
