"""Other people's parsers, and what they attach to a tiny model: run as `python real_trainers.py NAME FRAGMENT MODEL`.

Prints the rank of every adapted module, by its full name in the model, as JSON on the last line. The trainer's package
lies in PYTHONPATH.
"""

import json
import os
import re
import sys
import types

QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true", "AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}

# What each needs beside what is installed for development; none of it with its own dependencies.
PACKAGES = {
    "trl": ["trl==1.16.0"],
    "axolotl": ["axolotl==0.19.0", "posthog", "backoff", "distro", "addict", "einops"],
    "llamafactory": [
        "llamafactory==0.9.5",
        "trl==0.24.0",
        "omegaconf",
        "antlr4-python3-runtime==4.9.3",
        "av",
        "termcolor",
    ],
    "unsloth": ["unsloth==2026.10.9", "unsloth-zoo"],
    "ms-swift": [
        *("ms-swift==4.6.0", "modelscope", "modelscope_hub", "cryptography", "cffi", "addict", "json_repair", "einops"),
        *("backoff", "termcolor"),
    ],
    "nemo": ["nemo_automodel==0.7.0"],
    "mlx": ["mlx-lm==0.32.2", "mlx==0.32.4", "mlx-cpu==0.32.4"],
}
HELD = {"trl==0.24.0", "antlr4-python3-runtime==4.9.3"}  # the newest that LLaMA-Factory allows


def newest(name):
    """The same packages without a version, but for those that the trainer holds back; the trainer's own first."""
    return [package if package in HELD else package.partition("==")[0] for package in PACKAGES[name]]


def model_of(directory):
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    return getattr(transformers, config.architectures[0]).from_pretrained(directory)


def ranks(model, key="lora_A"):
    found = {}
    for name, parameter in model.named_parameters():
        match = re.fullmatch(rf"(?:base_model\.model\.)?(.+?)\.{key}(?:\..*)?", name)
        if match:
            found[match[1]] = min(parameter.shape)
    return found


def trl(fragment, directory):
    from peft import get_peft_model
    from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config

    given = ["--config", fragment, "--output_dir", "out", "--use_cpu", "True", "--bf16", "False"]
    _, config = TrlParser((SFTConfig, ModelConfig)).parse_args_and_config(given)
    return ranks(get_peft_model(model_of(directory), get_peft_config(config)))


def axolotl(fragment, directory):
    import yaml
    from axolotl.loaders.adapter import load_lora
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    base = {"base_model": directory, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1}
    base |= {"learning_rate": 1e-4, "datasets": [{"path": "a.jsonl", "type": "alpaca"}]}
    with open(fragment) as file:
        config = validate_config(DictDefault(base | yaml.safe_load(file)))
    return ranks(load_lora(model_of(directory), config)[0])


def llamafactory(fragment, directory):
    import yaml
    from llamafactory.hparams import get_train_args
    from llamafactory.model.adapter import init_adapter

    base = {"model_name_or_path": directory, "stage": "sft", "do_train": True, "dataset": "x", "template": "llama3"}
    base |= {"output_dir": "out", "report_to": "none", "use_cpu": True}
    with open(fragment) as file:
        model_args, _, _, finetuning, _ = get_train_args(base | yaml.safe_load(file))
    model = model_of(directory)
    return ranks(init_adapter(model.config, model, model_args, finetuning, True))


def unsloth(fragment, directory):
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(directory, max_seq_length=64, load_in_4bit=False, dtype=None)
    names = {"model": model}
    with open(fragment) as file:
        exec(file.read(), names)
    return ranks(names["model"])


def ms_swift(fragment, directory):
    import dataclasses

    from peft import LoraConfig, get_peft_model
    from swift.arguments.base_args.base_args import BaseArguments
    from swift.arguments.tuner_args import TunerArguments
    from swift.cli.main import parse_yaml_args
    from swift.pipelines.train.tuner import get_target_modules
    from transformers import HfArgumentParser

    @dataclasses.dataclass
    class Arguments(TunerArguments):
        def __post_init__(self):
            self.model_meta = types.SimpleNamespace(is_multimodal=False, model_arch=None)
            super().__post_init__()

    words = [fragment]
    parse_yaml_args(words)
    *parsed, rest = HfArgumentParser(Arguments).parse_args_into_dataclasses(words, return_remaining_strings=True)
    (arguments,) = parsed
    assert rest == ["--tuner_type", "lora"]  # of another of its classes, which wants a whole training
    assert "tuner_type" in BaseArguments.__dataclass_fields__
    model = model_of(directory)
    model.model_meta = types.SimpleNamespace(is_multimodal=False)
    targets = get_target_modules(arguments, model)
    config = LoraConfig(r=arguments.lora_rank, target_modules=targets, target_parameters=arguments.target_parameters)
    return ranks(get_peft_model(model, config))


def nemo(fragment, directory):
    import importlib

    import yaml
    from nemo_automodel.components._peft.lora import apply_lora_to_linear_modules

    with open(fragment) as file:
        values = yaml.safe_load(file)["peft"]
    module, _, name = values.pop("_target_").rpartition(".")
    model = model_of(directory)
    apply_lora_to_linear_modules(model, getattr(importlib.import_module(module), name)(**values))
    return ranks(model)


def mlx(fragment, directory):
    import mlx.core as mx
    import yaml
    from mlx.utils import tree_flatten
    from mlx_lm import lora
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.set_default_device(mx.cpu)
    with open(f"{directory}/config.json") as file:
        model = Model(ModelArgs.from_dict(json.load(file)))
    with open(fragment) as file:
        values = {**lora.CONFIG_DEFAULTS, **yaml.load(file, lora.yaml_loader)}
    assert values["num_layers"] <= len(model.layers)
    model.freeze()
    linear_to_lora_layers(model, values["num_layers"], values["lora_parameters"])
    parameters = tree_flatten(model.trainable_parameters())
    return {name.removesuffix(".lora_a"): min(v.shape) for name, v in parameters if name.endswith("lora_a")}


if __name__ == "__main__":
    os.environ |= QUIET | {"DISABLE_VERSION_CHECK": "1"}
    name, *places = sys.argv[1:]
    found = globals()[name.replace("-", "_")](*places)
    sys.stdout.write(f"\n{json.dumps(found)}\n")
