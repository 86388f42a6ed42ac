"""`export --into` keeps what a config has: modules in every spelling, counted on a real model by PEFT's own matching.

What a config adapts is found by other means than ours: PEFT attaches it to all layers, and the chosen ones are counted.
"""

import json

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from tiny import tiny

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of which only the configuration is there, and a selection of two of its layers; by name."""
    directory = tmp_path_factory.mktemp("models")
    for name in ("llama", "gpt2", "qwen3-moe"):
        model = tiny(name)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(directory / name)
        record = DataRecord(kind="text")
        chosen = make_selection(str(directory / name), "weights:0", find_stack(model), LAYERS, record, "picked")
        chosen.save(directory / f"{name}.json")
    return directory


def adapted(name="llama", **config):
    """Rank of every module and parameter that PEFT adapts with a config."""
    peft = get_peft_model(tiny(name), LoraConfig(**config)).base_model
    modules = {n: peft.model.get_submodule(n).r["default"] for n in peft.targeted_module_names}
    return modules | dict.fromkeys(peft.targeted_parameter_names, 0)


def in_layers(ranks):
    return {name: rank for name, rank in ranks.items() if name.startswith(tuple(f"model.layers.{i}." for i in LAYERS))}


@pytest.fixture
def into(place, tmp_path, call):
    def exported(to, text, *flags, name="llama"):
        (tmp_path / "theirs.yaml").write_text(text)
        words = ["export", place / f"{name}.json", "--to", to, "--into", "theirs.yaml", "--json", *flags]
        return call(*words, cwd=tmp_path)

    return exported


def values_of(result):
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(json.loads(result.stdout)["text"])


QV, LINEAR = ["q_proj", "v_proj"], "all-linear"
REGEX = r"model\.layers\.\d+\.mlp\.(up|down)_proj"
SPELLINGS = [
    ("trl", "use_peft: true\n", None),
    ("trl", "lora_target_modules: all-linear\n", LINEAR),
    ("trl", "lora_target_modules: [all-linear]\n", LINEAR),
    ("trl", "lora_target_modules: [k_proj, mlp.up_proj]\n", ["k_proj", "mlp.up_proj"]),
    ("trl", f"lora_target_modules:\n- {REGEX}\n", REGEX),
    ("trl", f"lora_target_modules: {REGEX}\n", REGEX),
    ("axolotl", "adapter: lora\n", None),
    ("axolotl", "adapter: qlora\nlora_target_linear: true\n", LINEAR),
    ("axolotl", "lora_target_linear: true\nlora_target_modules: [q_proj]\n", LINEAR),
    ("axolotl", "lora_target_linear: false\nlora_target_modules: [o_proj]\n", ["o_proj"]),
    ("axolotl", "lora_target_modules: all-linear\n", LINEAR),
    ("axolotl", f"lora_target_modules: {REGEX}\n", REGEX),
    ("axolotl", "lora_target_linear: true\npeft_layers_to_transform: [0]\n", LINEAR),
    ("llamafactory", "stage: sft\n", LINEAR),
    ("llamafactory", "lora_target: all\n", LINEAR),
    ("llamafactory", "lora_target: q_proj, v_proj\n", QV),
    ("llamafactory", "lora_target: [up_proj]\n", ["up_proj"]),
    ("ms-swift", "model: x\n", LINEAR),
    ("ms-swift", "target_modules: all-linear\n", LINEAR),
    ("ms-swift", "target_modules: [all-linear, q_proj]\n", LINEAR),
    ("ms-swift", "target_modules: [q_proj, down_proj]\n", ["q_proj", "down_proj"]),
    ("ms-swift", f"target_regex: {REGEX}\ntarget_modules: [q_proj]\n", REGEX),
    ("nemo", "peft: {dim: 4}\n", LINEAR),
    ("nemo", "peft:\n  match_all_linear: true\n", LINEAR),
    ("nemo", "peft:\n  target_modules: '*_proj'\n", LINEAR),
    (
        "nemo",
        "peft:\n  target_modules: ['*.mlp.*', '*.self_attn.k_proj']\n",
        ["gate_proj", "up_proj", "down_proj", "k_proj"],
    ),
    ("nemo", "peft:\n  exclude_modules: [lm_head, '*mlp.*']\n", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    ("mlx", "model: x\n", LINEAR),
    ("mlx", "lora_parameters: {rank: 4, scale: 2.0, dropout: 0.0}\n", LINEAR),
    ("mlx", "lora_parameters:\n  keys: [self_attn.o_proj, mlp.up_proj]\n", ["o_proj", "up_proj"]),
]


@pytest.mark.parametrize(("to", "text", "targets"), SPELLINGS, ids=[f"{to}: {text!r}" for to, text, _ in SPELLINGS])
def test_the_modules_of_a_config_are_kept_in_the_chosen_layers(to, text, targets, into):
    result = into(to, text)
    values_of(result)
    names = json.loads(result.stdout)["adapted"]
    expected = in_layers(adapted(target_modules=targets))
    assert names == sorted(expected)
    assert sorted(adapted(target_modules=names)) == names
    again = json.loads(result.stdout)["text"]
    assert json.loads(into(to, again).stdout)["adapted"] == names  # what was written is read alike


SHAPES = [
    ("trl", "use_peft: true\n", {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}),
    ("trl", "lora_r: 4\nlora_task_type: CAUSAL_LM\n", {"lora_r": 4, "lora_alpha": 32, "lora_dropout": 0.05}),
    ("trl", "output_dir: x\n", {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}),
    (
        "axolotl",
        "lora_r: 32\nlora_alpha: 64\nlora_dropout: 0.1\n",
        {"lora_r": 32, "lora_alpha": 64, "lora_dropout": 0.1},
    ),
    ("axolotl", "lora_r: 32\n", {"lora_r": 32, "lora_alpha": 16, "lora_dropout": 0}),
    ("llamafactory", "lora_rank: 32\n", {"lora_rank": 32, "lora_alpha": 64, "lora_dropout": 0}),
    ("llamafactory", "lora_alpha: 5\n", {"lora_rank": 8, "lora_alpha": 5, "lora_dropout": 0}),
    ("ms-swift", "model: x\n", {"lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05}),
    ("nemo", "peft: {match_all_linear: true}\n", {"dim": 8, "alpha": 32, "dropout": 0}),
    ("mlx", "model: x\n", {"rank": 8, "scale": 20, "dropout": 0}),
]


@pytest.mark.parametrize(("to", "text", "shape"), SHAPES, ids=[f"{to}: {text!r}" for to, text, _ in SHAPES])
def test_rank_scale_and_dropout_are_the_configs_or_its_trainers(to, text, shape, into):
    result = into(to, text)
    values = values_of(result)
    section = values[{"nemo": "peft", "mlx": "lora_parameters"}[to]] if to in ("nemo", "mlx") else values
    assert {key: section[key] for key in shape} == shape
    said = " ".join(json.loads(result.stdout)["notes"])
    for key, value in shape.items():  # what is added to adapters that are there is said
        assert (f"{key} is not there" in said) == (key not in text and "output_dir" not in text)
        assert f"{value:g}" in said or key in text or "output_dir" in text


def test_everything_else_stays(into):
    text = (
        "adapter: lora\nlora_r: 4\nlora_alpha: 8\npeft_use_dora: true\nlora_modules_to_save: [lm_head]\n"
        "lora_target_modules: [q_proj, up_proj]\nlora_rank_pattern: {up_proj: 2}\n"
        "lora_exclude_modules: [layers.1.mlp.up_proj]\nlora_fan_in_fan_out: false\n"
    )
    result = into("axolotl", text)
    values, before = values_of(result), yaml.safe_load(text)
    others = {key: value for key, value in values.items() if key not in ("lora_target_modules", "lora_dropout")}
    assert others == {key: value for key, value in before.items() if key != "lora_target_modules"}
    config = {"r": 4, "rank_pattern": {"up_proj": 2}, "exclude_modules": ["layers.1.mlp.up_proj"]}
    expected = in_layers(adapted(target_modules=["q_proj", "up_proj"], **config))
    assert values["lora_target_modules"] == sorted(expected)
    assert adapted(target_modules=values["lora_target_modules"], **config) == expected
    peft = get_peft_model(
        tiny("llama"), LoraConfig(target_modules=values["lora_target_modules"], use_dora=True, **config)
    )
    counted = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    assert json.loads(result.stdout)["trained_parameters"] == counted


def test_stacked_experts_are_kept_in_the_chosen_layers(into):
    text = "lora_target_modules: [q_proj]\nlora_target_parameters: [mlp.experts.down_proj]\n"
    values = values_of(into("axolotl", text, name="qwen3-moe"))
    config = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    expected = sorted(in_layers(adapted("qwen3-moe", **config)))
    assert sorted(values["lora_target_modules"] + values["lora_target_parameters"]) == expected
    refused = into(
        "axolotl", "lora_target_modules: [q_proj]\nlora_target_parameters: [mlp.experts.w9]\n", name="qwen3-moe"
    )
    assert refused.returncode == 2
    assert "w9" in refused.stderr


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("trl", "lora_target_modules: [up_proj, down_proj]\n"),
        ("axolotl", "lora_target_linear: true\n"),
        ("llamafactory", "lora_target: all\n"),
        ("ms-swift", "target_regex: .*up_proj\n"),
        ("nemo", "peft:\n  match_all_linear: true\n"),
        ("mlx", "lora_parameters:\n  keys: [mlp.up_proj]\n"),
    ],
)
def test_the_command_line_wins_and_is_said(to, text, into):
    result = into(to, text, "--target-modules", "k_proj", "--rank", "2", "--alpha", "4", "--dropout", "0.5")
    values = values_of(result)
    assert json.loads(result.stdout)["adapted"] == [f"model.layers.{i}.self_attn.k_proj" for i in LAYERS]
    said = json.loads(result.stdout)["notes"]
    assert any("--target-modules k_proj" in note for note in said)
    section = values.get("peft") or values.get("lora_parameters") or values
    assert {section[key] for key in section if key in ("lora_r", "lora_rank", "dim", "rank")} == {2}
    assert {section[key] for key in section if key.endswith("dropout")} == {0.5}


def test_a_selection_of_modules_wins_and_is_said(place, tmp_path, call):
    from dataclasses import replace

    from layersift.records.selection import Selection

    chosen = replace(Selection.load(place / "llama.json"), modules={1: {"mlp.up_proj": 4}, 3: {"mlp.up_proj": 4}})
    chosen.save(tmp_path / "modules.json")
    (tmp_path / "theirs.yaml").write_text("lora_target_linear: true\nlora_r: 8\nlora_alpha: 16\n")
    words = ["export", "modules.json", "--to", "axolotl", "--into", "theirs.yaml", "--json"]
    result = call(*words, cwd=tmp_path)
    values = values_of(result)
    assert (values["lora_r"], values["lora_alpha"]) == (4, 8)
    assert values["lora_target_modules"] == [f"model.layers.{i}.mlp.up_proj" for i in LAYERS]
    assert "lora_target_linear does not count" in " ".join(json.loads(result.stdout)["notes"])
    for flag, value in (("--target-modules", "all-linear"), ("--rank", "4"), ("--rank-of", "mlp=4")):
        refused = call(*words, flag, value, cwd=tmp_path)
        assert refused.returncode == 2
        assert flag in refused.stderr


REFUSED = [
    ("trl", "lora_target_modules: 7\n", "lora_target_modules"),
    ("trl", "lora_target_modules: [q_proj, 3]\n", "lora_target_modules"),
    ("trl", "lora_target_modules: {q_proj: 1}\n", "lora_target_modules"),
    ("trl", "lora_target_modules: []\n", "lora_target_modules"),
    ("trl", "lora_target_modules: [q_proj, lm_head]\n", "lora_target_modules & lm_head"),
    ("trl", "lora_target_modules: [q_proj]\nlora_r: 4.5\n", "lora_r"),
    ("trl", "use_peft: false\n", "use_peft"),
    ("trl", "use_dora: 3\nuse_peft: true\n", "use_dora"),
    ("trl", "lora_task_type: SEQ_CLS\nlora_r: 4\n", "lora_task_type & CAUSAL_LM"),
    ("trl", "lora_target_modules: '('\n", "lora_target_modules & ("),
    ("trl", "lora_target_modules: model.layers.0.*\n", "lora_target_modules"),
    ("axolotl", "adapter: full\n", "adapter & qlora"),
    ("axolotl", "lora_target_linear: often\n", "lora_target_linear & often"),
    (
        "axolotl",
        "lora_target_linear: true\nlora_target_modules: .*q_proj\n",
        "lora_target_modules & lora_target_linear",
    ),
    ("axolotl", "lora_target_linear: true\nlora_target_modules: [lm_head]\n", "lora_target_linear & lm_head"),
    ("axolotl", "lora_rank_pattern: [q_proj]\nadapter: lora\n", "lora_rank_pattern"),
    ("axolotl", "lora_rank_pattern: {q_proj: two}\nadapter: lora\n", "lora_rank_pattern"),
    ("axolotl", "lora_target_modules: [model.layers.0.self_attn.q_proj]\n", "lora_target_modules"),
    ("axolotl", "lora_dropout: 1.5\n", "lora_dropout"),
    ("axolotl", "lora_alpha: true\n", "lora_alpha"),
    ("llamafactory", "finetuning_type: freeze\n", "finetuning_type & lora"),
    ("llamafactory", "lora_target: [1]\n", "lora_target"),
    ("llamafactory", "lora_target: all,q_proj\n", "lora_target & all"),
    ("ms-swift", "tuner_type: full\n", "tuner_type"),
    ("ms-swift", "target_modules: [all-linear, all-embedding]\n", "target_modules & all-embedding"),
    ("ms-swift", "target_regex: [a]\n", "target_regex"),
    ("nemo", "peft: 3\n", "peft"),
    ("nemo", "peft:\n  dim: many\n", "peft.dim & many"),
    ("nemo", "peft:\n  target_modules: ['*.nothing']\n", "target_modules & *.nothing"),
    ("nemo", "peft:\n  target_modules: ['*_proj']\n  match_all_linear: true\n", "target_modules & match_all_linear"),
    ("nemo", "peft:\n  _target_: mine.Config\n", "_target_ & mine.Config"),
    ("mlx", "fine_tune_type: full\n", "fine_tune_type & dora"),
    ("mlx", "lora_parameters:\n  keys: self_attn.q_proj\n", "lora_parameters.keys"),
    ("mlx", "lora_parameters:\n  keys: [q_proj]\n", "keys & q_proj"),
    ("mlx", "lora_parameters: [1]\n", "lora_parameters"),
]


@pytest.mark.parametrize(("to", "text", "names"), REFUSED, ids=[f"{to}: {text!r}" for to, text, _ in REFUSED])
def test_what_cannot_be_kept_is_refused_by_file_and_key(to, text, names, into):
    result = into(to, text)
    assert result.returncode == 2, result.stdout
    assert result.stderr.count("error: ") == 1
    for name in ("theirs.yaml", *names.split(" & ")):
        assert name in result.stderr


def test_ranks_by_module_are_said_in_one_place(into):
    result = into(
        "axolotl", "lora_rank_pattern: {q_proj: 2}\nlora_target_modules: [q_proj]\n", "--rank-of", "attention=4"
    )
    assert result.returncode == 2
    assert "lora_rank_pattern" in result.stderr
    assert "--rank-of" in result.stderr


def test_what_a_trainer_does_not_call_linear_is_refused(into):
    """PEFT's all-linear holds GPT-2's Conv1D, which LLaMA-Factory and Axolotl pass over."""
    assert "Conv1D" in into("llamafactory", "lora_target: all\n", name="gpt2").stderr
    assert into("trl", "lora_target_modules: all-linear\n", name="gpt2").returncode == 0
