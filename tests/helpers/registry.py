"""Every model type that transformers registers, built without weights from its default config, and the stacks found.

python tests/helpers/registry.py        # writes docs/architectures.md; some minutes
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as tf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from layersift.errors import ModelError
from layersift.models.stacks import BlockStack, find_stacks

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
# What configs call the number of blocks of a stack.
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth")

FORECAST = {"prediction_length": 4}


def resnet_backbone():
    return {"use_timm_backbone": False, "backbone": None, "backbone_config": tf.ResNetConfig()}


# What default configs leave open.
SETTINGS = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), lambda: FORECAST),
    **dict.fromkeys(
        ("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer", "omdet-turbo"), resnet_backbone
    ),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "ministral"), lambda: {"head_dim": 128}),
    "hunyuan_vl": lambda: {"text_config": {"head_dim": 128}},
    "aya_vision": lambda: {"vision_config": tf.CLIPVisionConfig()},
    "esm": lambda: {"vocab_size": 33, "pad_token_id": 1},
    "nemotron": lambda: {"num_key_value_heads": 48},
    "chameleon": lambda: {"vocabulary_map": {"<image>": 4}},
    "emu3": lambda: {"vocabulary_map": {"<image>": 4}},
    "lfm2_moe": lambda: {"layer_types": ["full_attention", "conv"] * 16},
}


@dataclass(frozen=True)
class Tried:
    """What became of one model type."""

    model_type: str
    cls: str
    stacks: tuple[BlockStack, ...] = ()
    counts: frozenset[int] = frozenset()  # numbers of layers that the config and the configs in it name
    why: str = ""  # it could not be built, or has no blocks

    @property
    def verdict(self):
        """found, other count, no blocks, or not built."""
        if self.stacks:
            right = not self.counts or any(s.num_layers in self.counts for s in self.stacks)
            return "found" if right else "other count"
        return "no blocks" if self.why.startswith("no blocks") else "not built"


def configs_of(config):
    yield config
    for value in vars(config).values():
        if isinstance(value, tf.PretrainedConfig):
            yield from configs_of(value)


def counts_of(config):
    """Numbers of layers that a config and those in it name."""
    found = set()
    for each in configs_of(config):
        for name in COUNTS:
            value = getattr(each, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                found.add(value)
    return frozenset(found)


def attempt(model_type):
    """Build the type's base class on the meta device and look for stacks."""
    names = MODEL_MAPPING_NAMES[model_type]
    name = names if isinstance(names, str) else names[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, dict)())
            with torch.device("meta"):
                model = getattr(tf, name)(config)
    except Exception as error:  # whatever a class among hundreds says that it lacks
        return Tried(model_type, name, why=f"{type(error).__name__}: {' '.join(str(error).split())[:90]}")
    counts = counts_of(config)
    try:
        return Tried(model_type, name, tuple(find_stacks(model)), counts)
    except ModelError as error:
        shared = "shares its weights" in str(error)
        return Tried(model_type, name, counts=counts, why="no blocks: " + ("one shared block" if shared else "none"))


def try_all():
    """Every model type, in the order of their names."""
    tf.logging.set_verbosity_error()
    return [attempt(model_type) for model_type in sorted(MODEL_MAPPING_NAMES)]


HEAD = """# Architectures

Blocks are found by structure ([what a block is](method.md#blocks)). Where a model has several stacks, `--tower` names
one: `language`, `encoder`, `decoder`, `vision`, `audio`, or the path of the list. The default is the first of these in
that order; `encoder+decoder` ranks the layers of both together. Stages of hierarchical vision models (Swin) count as
blocks. The layers of hybrid stacks keep their indices; lists of lists (Funnel) are several stacks. ALBERT runs a single
block over and over, and is refused.

Below is every model type that transformers {version} registers ({types}), built without weights from its default
config. **{found}** have blocks that were found, {none} have none, {other} have other numbers of them than their configs
say. Another {broken} cannot be built from their default config in this version, and {library} need a library that
is not installed. Of the {tried} that could be built and tried, {share:.1%} are found or rightly without blocks. Made by
`python tests/helpers/registry.py`; `tests/models/test_registry.py` holds it.

"""


def page(tried):
    """The documentation's text."""
    by_verdict = {v: [t for t in tried if t.verdict == v] for v in ("found", "other count", "no blocks", "not built")}
    library = [t for t in by_verdict["not built"] if "requires the" in t.why]
    built = len(tried) - len(by_verdict["not built"])
    lines = [
        HEAD.format(
            version=tf.__version__,
            types=len(tried),
            found=len(by_verdict["found"]),
            none=len(by_verdict["no blocks"]),
            other=len(by_verdict["other count"]),
            library=len(library),
            broken=len(by_verdict["not built"]) - len(library),
            tried=built,
            share=(built - len(by_verdict["other count"])) / built,
        ),
        "## Found\n\n| model type | stacks: layers, tower, path |\n| --- | --- |\n",
        *(f"| {t.model_type} | {'; '.join(map(described, t.stacks))} |\n" for t in by_verdict["found"]),
        "\n## No stack of blocks\n\nConvolutions throughout, or a block shared by all layers (albert).\n\n",
        ", ".join(t.model_type for t in by_verdict["no blocks"]) + "\n",
        *(
            f"\nOther numbers than configured: {t.model_type} ({'; '.join(map(described, t.stacks))}).\n"
            for t in by_verdict["other count"]
        ),
        "\n## Not tried\n\n| model type | why it could not be built |\n| --- | --- |\n",
        *(f"| {t.model_type} | {t.why.replace('|', '/')} |\n" for t in by_verdict["not built"]),
    ]
    return "".join(lines)


def described(stack):
    return f"{stack.num_layers} {stack.tower} `{stack.path}`"


if __name__ == "__main__":
    TABLE.write_text(page(try_all()))
