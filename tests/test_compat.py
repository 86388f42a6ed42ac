"""Each thing that we use of other libraries beyond what they document is where `compat.py` looks for it."""

import copy
import inspect
import threading

import pytest
import torch
import transformers as tf
from accelerate import cpu_offload
from peft import LoraConfig, LoraModel
from torch import nn

from layersift import compat
from layersift.config.train import TRACKERS
from layersift.models.stacks import find_stack
from tiny import attach, selection_of, tiny


def test_auto_classes_know_which_configurations_they_build():
    assert compat.has_class_for(tf.AutoModelForSequenceClassification, tf.BertConfig())
    assert not compat.has_class_for(tf.AutoModelForSequenceClassification, tf.ViTConfig())
    assert compat.builds_from_config(tf.AutoModel)
    assert not compat.builds_from_config(tf.BertModel)


def test_a_model_knows_what_it_was_loaded_from(bert_directory):
    assert compat.name_of(tf.AutoModel.from_pretrained(bert_directory)) == bert_directory
    assert compat.name_of(tiny("bert")) == compat.name_of(nn.Linear(1, 1)) == ""
    assert compat.commit_of(tf.BertConfig()) is None
    assert compat.commit_of(tf.BertConfig.from_dict({}, _commit_hash="abc")) in ("abc", None)  # newer ones keep none


def test_a_models_attention_and_unsaved_weights():
    model = tiny("llama")
    assert compat.attention_of(model.config) == "sdpa"
    assert hasattr(tf.PreTrainedModel, "_keys_to_ignore_on_save")
    assert not compat.unsaved_weights(model)
    assert "lm_head" in compat.unconverted_modules(model)


def test_blocks_checkpoint_themselves_by_the_function_that_is_given():
    model = tiny("llama").train()
    block, calls = find_stack(model).blocks(model)[0], []
    assert getattr(block, "gradient_checkpointing", None) is False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    own = compat.checkpoint_function(block)

    def counted(*given, **more):
        calls.append(given)
        return own(*given, **more)

    compat.checkpoint_by(block, counted)
    model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert len(calls) == 1


@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_are_callbacks(name):
    assert issubclass(compat.tracker_class(name), tf.TrainerCallback)


def test_a_trainer_is_kept_to_one_gpu(tmp_path):
    arguments = tf.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 2
    assert arguments.n_gpu == 2
    compat.train_on_one_gpu(arguments)
    assert arguments.n_gpu == 1


def test_what_our_trainer_overrides_is_asked_for_by_transformers():
    source = inspect.getsource(tf.Trainer)
    for name in ("_get_train_sampler", "_issue_warnings_after_load", "get_batch_samples", "floating_point_ops"):
        assert source.count(f"self.{name}"), name
    assert "train_dataset" in inspect.signature(tf.Trainer._get_train_sampler).parameters


def test_what_our_benchmark_model_overrides_is_asked_for_by_lm_eval():
    api = pytest.importorskip("lm_eval.api.model")
    assert "self._loglikelihood_tokens(" in inspect.getsource(api.TemplateLM)
    assert "cache_hook.add_partial(" in inspect.getsource(pytest.importorskip("lm_eval.models.huggingface").HFLM)


def test_offloading_is_seen_and_taken_from_a_copy():
    model = nn.Sequential(nn.Linear(2, 3))
    assert compat.offloading_hook(model[0]) is None
    cpu_offload(model, torch.device("cpu"))
    assert compat.offloading_hook(model[0]) is not None
    twin = copy.deepcopy(model)
    compat.drop_offloading(twin[0])
    assert compat.offloading_hook(twin[0]) is None
    assert "forward" not in vars(twin[0])


def test_peft_methods_by_their_types():
    kind = LoraConfig().peft_type
    assert compat.config_classes()[kind] is LoraConfig
    assert compat.tuner_classes()[kind] is LoraModel
    assert compat.default_targets(LoraConfig(), "llama") == ["q_proj", "v_proj"]
    assert compat.default_targets(LoraConfig(), "nothing") == []


def test_peft_refuses_what_a_mamba_kernel_reads_by_itself():
    model = nn.Module()
    model.config = tf.MambaConfig()
    assert not compat.peft_allows("layers.0.mixer.out_proj", LoraConfig(), model)
    assert compat.peft_allows("layers.0.mixer.in_proj", LoraConfig(), model)


def test_weights_that_are_not_packed_stay_as_they_are():
    linear = nn.Linear(2, 3)
    assert torch.equal(compat.unpacked_weight(linear), linear.weight)


def adapters(layers, **options):
    model = tiny("qwen3-moe" if "target_parameters" in options else "llama")
    attached = attach(model, selection_of(model, layers), LoraConfig(r=2, **options))
    return {n: p.detach().clone() for n, p in attached.named_parameters() if "lora_A" in n}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ],
    ids=["modules", "stacked experts"],
)
def test_each_adapter_starts_from_a_seed_of_its_own(options):
    alone, both = adapters((1,), **options), adapters((0, 1), **options)
    assert len(alone) == 2
    assert all(torch.equal(both[name], weight) for name, weight in alone.items())
    flat = [weight.flatten()[:4] for weight in both.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(flat) for b in flat[:i])


def test_other_models_are_adapted_by_pefts_own_means_meanwhile():
    model, other, random = tiny("llama"), tiny("llama"), []
    with compat.seeded_by_module(model, (), 0):
        thread = threading.Thread(target=lambda: random.append(LoraModel(other, LoraConfig(), "default")))
        thread.start()
        thread.join()
    assert "get_submodule" not in vars(model)
    assert random


def test_a_loader_of_ones_own_share_is_dealt_out_no_further():
    class Evens(torch.utils.data.Sampler):
        epoch = None

        def __iter__(self):
            return iter(range(0, 8, 2))

        def __len__(self):
            return 4

        def set_epoch(self, epoch):
            self.epoch = epoch

    sampler = Evens()
    loader = compat.local_loader(torch.utils.data.DataLoader(range(8), 2, sampler=sampler), torch.device("cpu"))
    loader.set_epoch(3)
    assert [batch.tolist() for batch in loader] == [[0, 2], [4, 6]]
    assert (len(loader), sampler.epoch) == (2, 3)


def test_ddp_leaves_named_parameters_alone():
    model = nn.Linear(2, 2)
    compat.keep_out_of_ddp(model, ["bias"])
    assert model._ddp_params_and_buffers_to_ignore == ["bias"]
