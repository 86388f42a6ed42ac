"""`layersift export`: what a trainer is told adapts exactly the selection and keeps the rest of a config."""

import json

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from layersift.config.recipe import ModelSource
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError
from layersift.export.source import place
from layersift.export.text import as_text
from layersift.export.trainers import TRAINERS, find_trainer, fragment_for
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from tiny import CONFIGS, tiny


def chosen(name, directory, layers, tower=None, kind=None):
    """A selection of a model of which only the configuration is on disk."""
    model = tiny(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    return make_selection(
        str(directory), "weights:0", find_stack(model, tower), layers, DataRecord(kind=kind), "picked"
    )


def placed(selection, **settings):
    return place(selection, ModelSource(selection.model), TrainSettings(**settings))


def attached(model, config):
    """What PEFT adapts: names of modules and of parameters, and the rank of each module."""
    adapted = get_peft_model(model, config).base_model
    ranks = {n: adapted.model.get_submodule(n).r["default"] for n in adapted.targeted_module_names}
    return sorted(adapted.targeted_module_names), sorted(adapted.targeted_parameter_names), ranks


@pytest.mark.parametrize(
    ("name", "layers", "tower"),
    [
        ("bert", [1, 3], None),
        ("gpt2", [0, 3], None),
        ("llama", [1], None),
        ("t5", [0, 2], "encoder"),
        ("llava", [1, 2], "vision"),
        ("llava", [0, 3], "language"),
        ("qwen3-moe", [1, 3], None),
        ("jamba", [0, 2], None),
    ],
)
@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.filterwarnings("ignore")
def test_the_python_for_peft_adapts_exactly_the_selected_layers(name, layers, tower, targets, tmp_path):
    selection = chosen(name, tmp_path, layers, tower)
    found = placed(selection, rank=4, alpha=8, target_modules=targets)
    names = {}
    exec(as_text(TRAINERS["peft"], found, fragment_for(TRAINERS["peft"], found)), names)
    config = names["config"]
    assert isinstance(config, LoraConfig)
    config.task_type = None  # else PEFT trains a head, too, or asks for one
    modules, parameters, ranks = attached(tiny(name), config)
    assert (modules, parameters) == (list(found.modules), list(found.parameters))
    prefixes = [f"{selection.stack(tiny(name)).block_path(i)}." for i in layers]
    assert all(n.startswith(tuple(prefixes)) for n in (*modules, *parameters))
    assert all(any(n.startswith(p) for n in (*modules, *parameters)) for p in prefixes)
    assert set(ranks.values()) == {4}
    model = get_peft_model(tiny(name), config)
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", sorted(n for n, t in TRAINERS.items() if t.peft and not t.call))
def test_names_in_yaml_are_enough_for_peft(name, tmp_path):
    found = placed(chosen("llama", tmp_path, [0, 2]), target_modules="all-linear")
    values = yaml.safe_load(as_text(TRAINERS[name], found, fragment_for(TRAINERS[name], found)))
    targets = values.get("lora_target_modules") or values.get("target_modules") or values["lora_target"].split(",")
    modules, _, _ = attached(tiny("llama"), LoraConfig(target_modules=targets))
    assert modules == list(found.modules)
    assert len(modules) == 14


def test_ranks_by_module_go_where_the_trainer_has_them(tmp_path):
    selection = chosen("llama", tmp_path, [0, 2])
    ranks = {"mlp": 2, "self_attn.k_proj": 16}
    found = placed(selection, target_modules="all-linear", ranks=ranks)
    assert found.rank == 8
    fragment = fragment_for(TRAINERS["peft"], found)
    _, _, got = attached(tiny("llama"), LoraConfig(**fragment))
    assert got == {n: 2 if "mlp" in n else 16 if "k_proj" in n else 8 for n in found.modules}
    scaled = get_peft_model(tiny("llama"), LoraConfig(**fragment)).base_model.model
    assert {scaled.get_submodule(n).scaling["default"] for n in found.modules} == {2.0}
    for name in ("trl", "llamafactory", "ms-swift", "nemo", "mlx"):
        with pytest.raises(LayersiftError, match="one rank for all modules; this selection has others for 8"):
            fragment_for(TRAINERS[name], found)


def test_one_rank_for_all_is_no_pattern(tmp_path):
    found = placed(chosen("llama", tmp_path, [0, 2]), target_modules="q_proj,v_proj", ranks={"attention": 3})
    assert (found.rank, found.alpha, found.ranks) == (3, 6.0, {})
    assert fragment_for(TRAINERS["trl"], found)["lora_r"] == 3


def test_modules_of_a_selection_are_exported_with_their_ranks(tmp_path):
    from dataclasses import replace

    selection = chosen("llama", tmp_path, [0, 2])
    modules = {0: {"mlp.up_proj": 4}, 2: {"mlp.up_proj": 4, "self_attn.o_proj": 16}}
    found = placed(replace(selection, modules=modules))
    _, _, got = attached(tiny("llama"), LoraConfig(**fragment_for(TRAINERS["peft"], found)))
    expected = {"0.mlp.up_proj": 4, "2.mlp.up_proj": 4, "2.self_attn.o_proj": 16}
    assert got == {f"model.layers.{n}": rank for n, rank in expected.items()}


def test_one_module_is_no_regex_for_trl(tmp_path):
    found = placed(chosen("llama", tmp_path, [2]), target_modules="up_proj")
    (only,) = fragment_for(TRAINERS["trl"], found)["lora_target_modules"]
    modules, _, _ = attached(tiny("llama"), LoraConfig(target_modules=only))
    assert modules == ["model.layers.2.mlp.up_proj"]


def test_stacked_experts_are_refused_by_who_cannot_adapt_them(tmp_path):
    found = placed(chosen("qwen3-moe", tmp_path, [1, 3]), target_modules="q_proj,gate_proj,up_proj,down_proj")
    assert found.parameters
    assert fragment_for(TRAINERS["axolotl"], found)["lora_target_parameters"] == list(found.parameters)
    for name in ("nemo", "mlx", "llamafactory"):
        with pytest.raises(LayersiftError, match="a parameter that holds stacked experts; --to peft, axolotl, unsloth"):
            fragment_for(TRAINERS[name], found)


def test_alpha_is_whole_where_it_has_to_be(tmp_path):
    found = placed(chosen("llama", tmp_path, [2]), alpha=12.5)
    assert fragment_for(TRAINERS["peft"], found)["lora_alpha"] == 12.5
    with pytest.raises(LayersiftError, match=r"TRL takes a whole number for alpha, not 12\.5"):
        fragment_for(TRAINERS["trl"], found)


def test_a_vision_tower_is_not_frozen_by_llamafactory(tmp_path):
    text = fragment_for(TRAINERS["llamafactory"], placed(chosen("llava", tmp_path, [1], "language")))
    vision = fragment_for(TRAINERS["llamafactory"], placed(chosen("llava", tmp_path, [1], "vision")))
    assert "freeze_vision_tower" not in text
    assert vision["freeze_vision_tower"] is False


def test_mlx_has_a_scale(tmp_path):
    found = fragment_for(TRAINERS["mlx"], placed(chosen("llama", tmp_path, [2]), rank=4, alpha=32))
    assert found["lora_parameters"]["scale"] == 8.0


LINEAR = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
THEIRS = """\
# what we train
base_model: here   # tiny
adapter: qlora  # four bits
lora_r: 32
lora_alpha: 64   # twice

lora_target_linear: true
# layers that somebody liked
peft_layers_to_transform: [1, 2]
lora_target_modules:
  - q_proj
  # the other one
  - v_proj

# data
datasets:
    - path: "a.jsonl"   # mine
      type: alpaca
# the end
"""


def saved(selection, place):
    file = place / "selection.json"
    selection.save(file)
    return file


def test_into_keeps_the_rest_of_a_config_to_the_byte(tmp_path, call):
    file = saved(chosen("llama", tmp_path / "model", [1, 3]), tmp_path)
    theirs = tmp_path / "axolotl.yaml"
    theirs.write_text(THEIRS)
    result = call("export", file, "--to", "axolotl", "--into", theirs, "-o", tmp_path / "new.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert theirs.read_text() == THEIRS
    text = (tmp_path / "new.yaml").read_text()
    values = yaml.safe_load(text)
    assert values["lora_target_modules"] == sorted(f"model.layers.{i}.{leaf}" for i in (1, 3) for leaf in LINEAR)
    assert (values["adapter"], values["lora_r"], values["lora_alpha"]) == ("qlora", 32, 64)
    assert "lora_target_linear" not in values
    assert "peft_layers_to_transform" not in values
    left = [line for line in THEIRS.splitlines() if "lora_target_l" not in line and "peft_layers" not in line]
    left = [line for line in left if line not in ("  - q_proj", "  # the other one", "  - v_proj")]
    lines = text.splitlines()
    assert [line for line in lines if line in left] == left
    said = result.stderr
    assert "lora_target_linear True" in said
    assert "peft_layers_to_transform" in said
    assert "14 entries" in said
    assert f"export {file} --to axolotl" in text  # the command


def test_a_rank_on_the_command_line_wins_over_the_config(tmp_path, call):
    file = saved(chosen("llama", tmp_path / "model", [1, 3]), tmp_path)
    theirs = tmp_path / "axolotl.yaml"
    theirs.write_text(THEIRS)
    result = call("export", file, "--to", "axolotl", "--into", theirs, "--rank", "4", "--json", cwd=tmp_path)
    found = json.loads(result.stdout)
    values = yaml.safe_load(found["text"])
    assert (values["lora_r"], values["lora_alpha"]) == (4, 64)
    assert "lora_r: 4\nlora_alpha: 64   # twice\n" in found["text"]
    assert f"{theirs}: lora_r 32 becomes 4" in found["notes"]
    assert found["adapted"] == values["lora_target_modules"]


@pytest.mark.parametrize(
    ("to", "before", "modules", "after"),
    [
        (
            "nemo",
            "step: 1\npeft:\n  match_all_linear: true  # all\n  dim: 4\n  alpha: 8\n# data\ndataset: x\n",
            LINEAR,
            {"dim": 4, "alpha": 8, "dropout": 0.0},
        ),
        (
            "nemo",
            "peft: {exclude_modules: [lm_head, '*.mlp.*'], dim: 4, alpha: 8}\n",
            LINEAR[:4],
            {"dim": 4, "alpha": 8, "dropout": 0.0},
        ),
        ("nemo", "step: 1\n", LINEAR, {"dim": 8, "alpha": 16, "dropout": 0.0}),
        (
            "mlx",
            "lora_parameters:\n    rank: 4  # small\n    scale: 20.0\n    keys: [self_attn.q_proj]\nmodel: here",
            ["self_attn.q_proj"],
            {"rank": 4, "scale": 20.0, "dropout": 0.0},
        ),
    ],
)
def test_into_a_section(to, before, modules, after, tmp_path, call):
    file = saved(chosen("llama", tmp_path / "model", [3]), tmp_path)
    (tmp_path / "theirs.yaml").write_text(before)
    result = call("export", file, "--to", to, "--into", tmp_path / "theirs.yaml", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    values = yaml.safe_load(json.loads(result.stdout)["text"])
    section = values["peft" if to == "nemo" else "lora_parameters"]
    named = section.pop("target_modules" if to == "nemo" else "keys")
    assert named == sorted(f"model.layers.3.{leaf}" for leaf in modules)
    assert {"match_all_linear", "exclude_modules"}.isdisjoint(section)
    section.pop("_target_", None)
    assert section == after
    others = {k: v for k, v in yaml.safe_load(before).items() if k not in ("peft", "lora_parameters")}
    assert {k: values[k] for k in others} == others
    for comment in ("# data", "# small"):
        assert (comment in before) == (comment in json.loads(result.stdout)["text"])


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("- a\n- b\n", "expected keys and values"),
        ("{lora_r: 8, adapter: lora}\n", "one a line"),
        ("lora_r: 8\nlora_r: 9\n", "given twice"),
        ("lora_r: [1\n", "not YAML"),
        ("lora_r: high\n", "lora_r 'high'"),
        ("lora_r: 0\n", "lora_r 0"),
        ("x: &a [q_proj]\nlora_target_modules: *a\n", None),
        ("lora_target_modules: &a [q_proj]\nx: *a\n", "not YAML"),
    ],
)
def test_a_config_that_cannot_be_added_to_is_refused(theirs, said, tmp_path, call):
    file = saved(chosen("llama", tmp_path / "model", [3]), tmp_path)
    (tmp_path / "theirs.yaml").write_text(theirs)
    words = ["export", file, "--to", "axolotl", "--into", tmp_path / "theirs.yaml", "-o", tmp_path / "new.yaml"]
    result = call(*words, cwd=tmp_path)
    if said is None:
        assert result.returncode == 0, result.stderr
        return
    assert result.returncode == 2
    assert said in result.stderr
    assert not (tmp_path / "new.yaml").exists()


def test_the_model_may_have_moved(tmp_path, call):
    file = saved(chosen("llama", tmp_path / "model", [3]), tmp_path)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert call("export", file, "--to", "trl", cwd=tmp_path).returncode == 2
    result = call("export", file, "--to", "trl", "--model", tmp_path / "moved", cwd=tmp_path)
    assert "model.layers.3.self_attn.q_proj" in result.stdout


def test_a_classifier_is_named_as_its_class_names_it(tmp_path):
    """MiniLM is saved as a bare encoder, whose blocks have no prefix; the classifier trained from it has one."""
    import transformers

    config = CONFIGS["bert"]()
    config.architectures = ["BertModel"]
    config.save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification(config)
    record = DataRecord(kind="classification")
    selection = make_selection(str(tmp_path), "weights:0", find_stack(model), [1], record, "picked")
    fragment = fragment_for(TRAINERS["trl"], placed(selection))
    assert fragment["lora_task_type"] == "SEQ_CLS"
    assert all(name.startswith("bert.encoder.layer.1.") for name in fragment["lora_target_modules"])


def test_unknown_trainers_are_named():
    with pytest.raises(LayersiftError, match="Did you mean 'axolotl'"):
        find_trainer("axolot")


def test_a_config_and_names_without_weights(tmp_path):
    """By the model's name, and from a model on the meta device, they are those of the loaded model."""
    import torch

    selection = chosen("llama", tmp_path, [0, 2])
    lora = LoraConfig(target_modules="all-linear")
    with torch.device("meta"):
        empty = tiny("llama")
    configs = [selection.peft_config(model, lora) for model in (str(tmp_path), empty, tiny("llama"))]
    assert configs[0] == configs[1] == configs[2]
    names = selection.module_names(str(tmp_path), lora)
    modules, _, _ = attached(tiny("llama"), configs[0])
    assert list(names) == modules
    experts = chosen("qwen3-moe", tmp_path / "moe", [1])
    named = experts.module_names(str(tmp_path / "moe"), LoraConfig(target_modules=["q_proj", "down_proj"]))
    assert named == ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.experts.down_proj")
