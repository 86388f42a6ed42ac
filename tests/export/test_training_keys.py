"""`layersift export DIRECTORY`: how an advice or a run trains, in the keys of every trainer."""

import json

import pytest
import yaml

from layersift.config.recipe import Columns, ModelSource
from layersift.config.train import TrainSettings
from layersift.export.hyperparameters import SPELLINGS, Hyperparameters
from layersift.export.trainers import TRAINERS
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.runs import EncoderRecord, RunRecord
from layersift.records.selection import make_selection
from tiny import tiny

TRAIN = {
    "epochs": 2.5,
    "learning_rate": 0.0012,
    "batch_size": 4,
    "gradient_accumulation": 3,
    "rank": 6,
    "alpha": 12.0,
    "dropout": 0.05,
    "target_modules": "q_proj,v_proj",
    "scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "loraplus_ratio": 16.0,
    "gradient_checkpointing": True,
}
ROWS = 100
STEPS = 23  # 25 batches are 9 steps an epoch
# Rate, schedule, epochs, batch, accumulation, weight decay, length.
HF = {
    "learning_rate": 0.0012,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 2.5,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "weight_decay": 0.01,
    "gradient_checkpointing": True,
    "seed": 3,
}
EXPECTED = {
    "trl": HF | {"max_length": 300, "warmup_steps": 3, "lora_r": 6, "lora_alpha": 12, "lora_dropout": 0.05},
    "axolotl": {
        "learning_rate": 0.0012,
        "lr_scheduler": "cosine",
        "num_epochs": 2.5,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "weight_decay": 0.01,
        "gradient_checkpointing": True,
        "warmup_ratio": 0.1,
        "sequence_len": 300,
        "loraplus_lr_ratio": 16.0,
        "lora_r": 6,
    },
    "llamafactory": {key: value for key, value in HF.items() if key != "gradient_checkpointing"}
    | {"disable_gradient_checkpointing": False, "cutoff_len": 300, "loraplus_lr_ratio": 16.0, "lora_rank": 6},
    "ms-swift": HF | {"max_length": 300, "warmup_ratio": 0.1, "lorap_lr_ratio": 16.0, "lora_rank": 6},
    "nemo": {
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.0012, "weight_decay": 0.01},
        "step_scheduler": {"global_batch_size": 12, "local_batch_size": 4, "num_epochs": 3, "max_steps": STEPS},
    },
    "mlx": {
        "learning_rate": 0.0012,
        "batch_size": 4,
        "grad_accumulation_steps": 3,
        "iters": 3 * STEPS,
        "max_seq_length": 300,
        "grad_checkpoint": True,
        "lr_schedule": {"name": "cosine_decay", "warmup": 3, "arguments": [0.0012, STEPS - 3]},
    },
}
MODEL_KEY = {"trl": "model_name_or_path", "axolotl": "base_model", "llamafactory": "model_name_or_path"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    llama = tiny("llama")
    llama.config.architectures = [type(llama).__name__]
    llama.config.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def advice(model, tmp_path):
    """The directory of an advice, with some of the training's settings changed."""

    def written(variant="advised=0101", task="instruction", **train):
        place = tmp_path / "advice"
        place.mkdir()
        recipe = {
            "model": {"name": model},
            "data": {"data": "chats.jsonl", "max_length": 300},
            "train": TRAIN | train,
            "output": "advice/run",
            "variants": [variant, "base"],
            "seed": 3,
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (place / "advice.json").write_text(json.dumps({"task": task, "samples": ROWS}))
        return place

    return written


def exported(call, tmp_path, *words):
    result = call("export", *words, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_an_advice_becomes_a_trainers_file(name, advice, model, call, tmp_path):
    found = exported(call, tmp_path, advice(), "--to", name)
    values = yaml.safe_load(found["text"])
    assert {key: values[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert found["adapted"] == [f"model.layers.{i}.self_attn.{leaf}_proj" for i in (1, 3) for leaf in "qv"]
    assert name not in MODEL_KEY or values[MODEL_KEY[name]] == model
    lacking = [note for note in found["notes"] if "no key" in note]
    assert any("loraplus_ratio 16" in note for note in lacking) == (name in ("trl", "nemo", "mlx"))
    for note in found["notes"]:
        assert f"# {note}\n" in found["text"]
    assert any("chats.jsonl" in note for note in found["notes"])


def test_python_gets_the_training_as_arguments(advice, call, tmp_path):
    text = exported(call, tmp_path, advice(), "--to", "peft")["text"]
    names = {}
    exec(text, names)
    given = names["arguments"]
    assert {key: getattr(given, key) for key in HF if key != "lr_scheduler_type"} == {
        key: value for key, value in HF.items() if key != "lr_scheduler_type"
    }
    assert (given.lr_scheduler_type.value, given.get_warmup_steps(STEPS)) == ("cosine", 3)
    assert (names["config"].r, names["config"].lora_dropout) == (6, 0.05)


def test_flags_win_over_the_advice(advice, call, tmp_path):
    words = (advice("all"), "--to", "trl", "--rank", "2", "--target-modules", "up_proj")
    values = yaml.safe_load(exported(call, tmp_path, *words)["text"])
    assert (values["lora_r"], values["lora_alpha"], len(values["lora_target_modules"])) == (2, 12, 4)


@pytest.mark.parametrize(
    ("method", "name", "key"),
    [
        ("rslora", "trl", {"use_rslora": True}),
        ("rslora", "axolotl", {"peft_use_rslora": True}),
        ("rslora", "llamafactory", {"use_rslora": True}),
        ("dora", "ms-swift", {"use_dora": True}),
        ("dora", "mlx", {"fine_tune_type": "dora"}),
    ],
)
def test_variants_of_lora_go_along(method, name, key, advice, call, tmp_path):
    values = yaml.safe_load(exported(call, tmp_path, advice(method=method), "--to", name)["text"])
    assert key.items() <= values.items()


def test_the_scale_of_rslora_is_kept_where_there_is_no_key(advice, call, tmp_path):
    place = advice(method="rslora", rank=4, alpha=8.0)
    values = yaml.safe_load(exported(call, tmp_path, place, "--to", "mlx")["text"])
    assert values["lora_parameters"]["scale"] == 4.0
    refused = call("export", place, "--to", "nemo", cwd=tmp_path)
    assert refused.returncode == 2
    assert "sqrt(rank)" in refused.stderr


@pytest.mark.parametrize(
    ("train", "said"),
    [({"layer_decay": 0.8}, "layer_decay 0.8"), ({"strategy": "freezing"}, "strategy freezing")],
)
def test_what_no_trainer_has_is_said(train, said, advice, call, tmp_path):
    place = advice(**train)
    for name in TRAINERS:
        found = exported(call, tmp_path, place, "--to", name)
        assert any(said in note for note in found["notes"]), name
        assert said in found["text"]


def test_into_a_config_the_training_goes_too(advice, call, tmp_path):
    theirs = "base_model: theirs\nwarmup_steps: 5  # of many\nnum_epochs: 1\nadapter: lora\nlora_r: 64\n"
    (tmp_path / "theirs.yaml").write_text(theirs)
    found = exported(call, tmp_path, advice(), "--to", "axolotl", "--into", "theirs.yaml")
    values = yaml.safe_load(found["text"])
    assert (values["base_model"], values["lora_r"], values["num_epochs"]) == ("theirs", 6, 2.5)
    assert values["warmup_steps"] == 3
    assert "warmup_ratio" not in values
    assert any("num_epochs 1 becomes 2.5" in note for note in found["notes"])
    assert "# of many" in found["text"]


def test_a_base_in_four_bits(model):
    training = Hyperparameters("a", model, "d", "text", 1, TrainSettings(**TRAIN), 9, 0, "4bit")
    assert SPELLINGS["axolotl"].quantized["4bit"] == {"adapter": "qlora", "load_in_4bit": True}
    assert "4bit" in " ".join(SPELLINGS["mlx"].unsaid(training, "mlx-lm"))


def test_a_run_is_exported_from_its_record(model, call, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    data = DataRecord("chats.jsonl", ROWS, kind="instruction")
    selection = make_selection(model, "weights:0", find_stack(tiny("llama")), [1, 3], data, "picked")
    selection.save(run / "selection.json")
    RunRecord(
        ModelSource(model),
        "weights:0",
        EncoderRecord("instruction", max_length=300),
        Columns(),
        data,
        TrainSettings(**TRAIN),
        3,
        selection.mask,
        ROWS,
        STEPS,
        1.0,
        1.0,
        None,
        10,
        10,
        "cpu",
    ).save(run)
    values = yaml.safe_load(exported(call, tmp_path, run, "--to", "axolotl")["text"])
    assert {key: values[key] for key in EXPECTED["axolotl"]} == EXPECTED["axolotl"]


def test_a_classifier_is_not_what_text_trainers_make(advice, call, tmp_path):
    place = advice()
    (place / "advice.json").write_text(json.dumps({"task": "classification", "samples": ROWS}))
    notes = exported(call, tmp_path, place, "--to", "trl")["notes"]
    assert any("classification" in note for note in notes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda place: (place / "recipe.yaml").unlink(), "nothing fitted"),
        (lambda place: (place / "advice.json").write_text("{}"), "samples"),
        (lambda place: (place / "advice.json").write_text('{"samples": 3}'), "task"),
        (lambda place: (place / "advice.json").unlink(), "selection file"),
    ],
)
def test_a_directory_that_says_too_little_is_refused(spoil, said, advice, call, tmp_path):
    place = advice()
    spoil(place)
    result = call("export", place, "--to", "trl", "-o", "new.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("error: ") == 1
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize("method", ["pissa", "full", "loha"])
def test_other_methods_are_refused(method, advice, call, tmp_path):
    place = advice(**({"method": method} | ({"rank": 8, "alpha": 16, "dropout": 0.0} if method == "full" else {})))
    if method == "full":
        recipe = yaml.safe_load((place / "recipe.yaml").read_text())
        recipe["train"].pop("target_modules")
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = call("export", place, "--to", "axolotl", cwd=tmp_path)
    assert result.returncode == 2
    assert method in result.stderr
