"""Criteria on odd inputs: constant halves, maps that run twice, two towers, no labels, numbers that are none."""

import dataclasses
import gc
import math
import weakref

import numpy as np
import pytest
import torch
import transformers as tf
from peft import LoraConfig
from scipy import stats

from contexts import context, examples, gradients_one_by_one, measured, represented
from layersift import select_layers
from layersift.adapt import attach as attach_module
from layersift.data.examples import Example
from layersift.errors import DataError, LayersiftError, SelectionError
from layersift.models.stacks import find_stack
from layersift.represent.positions import POSITIONS
from layersift.score import gradients
from layersift.score.context import ScoringContext
from layersift.score.criteria import pilot as pilot_module
from layersift.score.criterion import score_layers
from layersift.score.registry import CRITERIA
from layersift.score.stability import measure_stability, until_stable
from tiny import DECODER, SIZE, tiny
from words import tokenizer

ROWS = [{"text": f"w{i} w{i % 7} w{i % 3}", "label": i % 2} for i in range(20)]


def written(count=6, model="t5", tower="decoder", seed=0):
    """An encoder-decoder and samples of it, of different lengths on both sides."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        read, target = (tuple(int(t) for t in rng.integers(5, 100, int(rng.integers(3, 9)))) for _ in range(2))
        made.append(Example(read, (True,) * len(read), target=target))
    loaded = tiny(model)
    return ScoringContext(loaded, find_stack(loaded, tower), tuple(made), "instruction", count=2)


# How sure


@pytest.mark.parametrize("criterion", ["cka", "cka-biased"])
@pytest.mark.parametrize("width", [48, 256])  # more samples than dimensions, and fewer
def test_a_half_that_is_constant_has_no_score(criterion, width):
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(width, generator=draw).repeat(64, 1)
    first[:2] += torch.randn(2, width, generator=draw)
    given = represented([first, torch.randn(64, width, generator=draw), torch.randn(64, width, generator=draw)])
    constant = score_layers(CRITERIA[criterion], given.of(torch.arange(2, 34)))
    assert constant.importance[0] is None
    assert "constant" in constant.undefined[0]
    assert constant.importance[1] is not None
    varied = score_layers(CRITERIA[criterion], given.of(torch.arange(1, 34)))
    assert varied.importance[0] is not None


def test_halves_of_a_biased_measure_do_not_contradict_the_whole():
    draw = torch.Generator().manual_seed(0)
    isotropic = [torch.randn(128, 1024, generator=draw) for _ in range(2)]
    low = torch.randn(128, 2, generator=draw) @ torch.randn(2, 1024, generator=draw)
    moved = low + 0.33 * torch.randn(128, 2, generator=draw) @ torch.randn(2, 1024, generator=draw)
    given = represented([*isotropic, low, moved])
    whole = score_layers(CRITERIA["cka-biased"], given)
    assert whole.top(2) == (0, 1)
    found = measure_stability(CRITERIA["cka-biased"], given, 2)
    assert found.membership[0] > 0.5
    assert sum(found.membership) == pytest.approx(2)
    for layer in range(3):
        assert found.low[layer] <= whole.importance[layer] <= found.high[layer]


def test_certainty_is_that_of_students_test():
    values = np.random.default_rng(3).normal(size=(2, 64))
    values[0] += 0.35
    found = measure_stability(CRITERIA["cosine"], measured(values), 1, draws=4000)
    p = stats.ttest_rel(*values, alternative="greater").pvalue
    assert found.certainty == pytest.approx((1 - p, 1 - p), abs=0.004)


def test_high_confidence_is_not_had_from_200_halves_alone():
    decided = {0.95: 0, 0.9999: 0}
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(2, 64)) + np.array([[0.7], [0.0]])
        found = measure_stability(CRITERIA["cosine"], measured(values), 1)
        for confidence in decided:
            decided[confidence] += found.decided(confidence)
    assert decided[0.95] > 12
    assert decided[0.9999] < decided[0.95] - 4


@pytest.mark.parametrize("count", [33, 34, 50])
@pytest.mark.parametrize("criterion", ["cka", "rsa", "cka-robust", "fisher"])
def test_a_last_look_at_few_more_samples_is_possible(criterion, count):
    model = tiny("bert")
    whole = ScoringContext(model, find_stack(model), examples("classification", count), "classification")
    grown, _, stop = until_stable(CRITERIA[criterion], whole, 2, confidence=0.9999999)
    assert (stop.decided, stop.samples, len(grown.examples)) == (False, count, count)


def test_membership_of_a_threshold_is_how_often_a_layer_is_beyond_it():
    values = np.random.default_rng(1).normal(size=(3, 64)) * 0.4 + np.array([[2.0], [0.98], [-2.0]])
    found = measure_stability(CRITERIA["cosine"], measured(values), 1, threshold=1.0)
    assert found.membership[0] == 1
    assert 0.1 < found.membership[1] < 0.9
    assert found.membership[2] == 0


def test_no_membership_is_claimed_for_what_an_objective_affords():
    found = select_layers(tiny("bert"), ROWS, tokenizer(), criterion="cka@mean", objective="time=0.7")
    assert found.membership is None
    assert found.interval is not None


def test_an_own_rule_is_asked_once():
    asked = []

    def rule(given):
        asked.append(given.samples)
        return [1, 2, 3, 4]

    found = select_layers(tiny("bert"), ROWS, tokenizer(), top_n=2, criterion=rule)
    assert asked == [None]
    assert found.membership is None


# Gradients


def test_a_map_that_runs_in_pieces_has_the_gradient_of_all_of_them():
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**SIZE, chunk_size_feed_forward=2)).eval()
    rng = np.random.default_rng(0)
    made = tuple(Example(tuple(map(int, rng.integers(5, 100, 8))), (True,) * 8, label=i % 2) for i in range(6))
    given = ScoringContext(model, find_stack(model), made, "classification")
    truth, _ = gradients_one_by_one(given)
    for m in given.gradients().modules:
        wanted = torch.stack(truth[m.layer][m.name]).square().sum((1, 2))
        assert torch.allclose(m.squared_norm.double(), wanted, rtol=1e-5), m.name


def test_the_graph_of_a_batch_is_gone_with_the_batch():
    given = context("llama", count=8)
    alive = []
    for block in given.stack.blocks(given.model):
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda m, a, output: alive.append(weakref.ref(output)))
    gc.collect()
    gc.disable()  # what keeps itself alive is collected some day, and the memory is gone until then
    try:
        given.gradients()
        assert len(alive) >= 28
        assert not [output for output in alive if output() is not None]
    finally:
        gc.enable()


def decoder_gradients(given):
    """|G|^2 of every map of the decoder's blocks for each sample, with ordinary autograd."""
    found = {}
    for example in given.examples:
        given.model.zero_grad()
        labels = torch.tensor([example.target])
        loss = given.model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss * labels.numel()
        loss.backward()
        for layer, block in enumerate(given.stack.blocks(given.model)):
            for leaf, module in block.named_modules():
                if isinstance(module, torch.nn.Linear):
                    found.setdefault((layer, leaf), []).append(float(module.weight.grad.double().square().sum()))
    given.model.zero_grad(set_to_none=True)
    return found


def test_keys_and_values_of_what_the_encoder_gives_have_their_gradients():
    given = written()
    truth = decoder_gradients(given)
    ours = {(m.layer, m.name): m.squared_norm for m in given.gradients().modules}
    assert set(ours) == set(truth)
    assert any("EncDecAttention.k" in name for _, name in ours)
    for key, norms in ours.items():
        assert norms.tolist() == pytest.approx(truth[key], rel=1e-4), key


def test_padding_on_either_side_does_not_move_resnorm(monkeypatch):
    together = score_layers(CRITERIA["resnorm"], written()).importance
    monkeypatch.setattr(gradients, "TOKEN_BUDGET", 1)
    assert together == pytest.approx(score_layers(CRITERIA["resnorm"], written()).importance, rel=1e-4)


def test_outputs_that_are_changed_in_place_do_not_mislead_taylor():
    torch.manual_seed(0)
    config = tf.FalconConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=120,
        parallel_attn=True,
        new_decoder_architecture=False,
        multi_query=True,
    )
    model = tf.FalconForCausalLM(config).eval()
    given = ScoringContext(model, find_stack(model), examples("instruction", 4), "instruction")
    weights = {name: p for name, p in model.named_parameters() if name.endswith("dense_4h_to_h.weight")}
    truth = {name: [] for name in weights}
    for example in given.examples:
        model.zero_grad()
        ids = torch.tensor([example.input_ids])
        labels = torch.where(torch.tensor([example.response]), ids, -100)
        (model(input_ids=ids, labels=labels).loss * sum(example.response)).backward()
        for name, weight in weights.items():
            truth[name].append(float((weight * weight.grad).sum()))
    model.zero_grad(set_to_none=True)
    for m in given.gradients().modules:
        if m.name.endswith("dense_4h_to_h"):
            name = f"{given.stack.block_path(m.layer)}.{m.name}.weight"
            assert m.inner.tolist() == pytest.approx(truth[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("criterion", ["gradient-norm", "rgn", "taylor"])
def test_a_sample_without_a_label_is_left_out(criterion):
    given = context("llama", count=6)
    empty = Example((7, 8, 9), (True,) * 3, (False,) * 3)
    more = dataclasses.replace(given, examples=(*given.examples, empty), activations=type(given.activations)())
    wanted = score_layers(CRITERIA[criterion], given).importance
    assert None not in wanted
    assert score_layers(CRITERIA[criterion], more).importance == pytest.approx(wanted, rel=1e-4)


# Weights


def test_maps_of_different_shapes_are_not_ranked_together():
    model = tiny("llama")
    given = ScoringContext(model, find_stack(model), examples("instruction", 4), "instruction")
    torch.manual_seed(1)
    for block, width in zip(given.stack.blocks(model), (48, 48, 256, 256), strict=True):
        block.mlp.up_proj = torch.nn.Linear(32, width, bias=False)
    model.requires_grad_(False)
    for name in ("spectrum", "kappa", "alpha-hill"):
        for block in given.stack.blocks(model):
            for leaf, module in block.named_modules():
                if isinstance(module, torch.nn.Linear) and not leaf.endswith("up_proj"):
                    module.weight.fill_(0)
        found = score_layers(CRITERIA[name], given).importance
        assert sorted(found[:2]) == sorted(found[2:]) == [0, 1], name


@pytest.mark.parametrize("criterion", ["spectrum", "kappa", "alpha-hill"])
def test_a_weight_that_is_no_number_or_nothing_stands_nowhere(criterion):
    given = context("bert")
    plain = score_layers(CRITERIA[criterion], given).importance
    attention = given.stack.blocks(given.model)[1].attention
    with torch.no_grad():
        attention.self.query.weight[0, 0] = math.nan
        attention.output.dense.weight.zero_()
    found = score_layers(CRITERIA[criterion], given).importance
    assert None not in found
    assert found != plain


def test_zeros_are_not_the_best_conditioned_of_weights():
    given = context("llama")
    with torch.no_grad():  # as in blocks that are put between others
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            given.stack.blocks(given.model)[2].get_submodule(name).weight.zero_()
    make_selection = [
        [float(torch.linalg.cond(m.weight)) for m in block.modules() if isinstance(m, torch.nn.Linear)]
        for block in given.stack.blocks(given.model)
    ]
    assert sum(not math.isfinite(c) or c != c for c in make_selection[2]) == 2
    found = score_layers(CRITERIA["kappa"], given).importance
    others = [c for c in make_selection[2] if math.isfinite(c)]
    columns = list(zip(*[b for i, b in enumerate(make_selection) if i != 2], strict=True))
    finite = [i for i, c in enumerate(make_selection[2]) if math.isfinite(c)]
    standing = [sum(v < make_selection[2][i] for v in columns[i]) / 3 for i in finite]
    assert len(others) == 5
    assert found[2] == pytest.approx(np.mean(standing))


def test_resnorm_of_what_is_no_number_is_undefined():
    given = context("bert")
    with torch.no_grad():
        given.stack.blocks(given.model)[0].attention.self.query.weight[0, 0] = math.nan
    found = score_layers(CRITERIA["resnorm"], given)
    assert found.importance == (None,) * 4


# Short trainings and EVA


def test_a_map_that_wins_no_rank_counts_nothing():
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 12, "vocab_size": 400}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**{**DECODER, **shape})).eval()
    with torch.no_grad():
        # Layer 0 reads 128 directions of equal variance; what it writes, and all others read, has twelve.
        model.model.embed_tokens.weight.normal_(std=0.02)
        first = model.model.layers[0].mlp
        for part in (first.gate_proj, first.up_proj):
            part.weight.normal_(std=0.5)
        first.down_proj.weight.zero_()
        first.down_proj.weight[:, :12] = 30 * torch.linalg.qr(torch.randn(128, 12))[0]
    rng = np.random.default_rng(0)
    made = tuple(
        Example(tuple(map(int, rng.integers(5, 400, 24))), (True,) * 24, (False,) * 3 + (True,) * 21) for _ in range(64)
    )
    stack = find_stack(model)
    given = ScoringContext(model, stack, made, "instruction", adapter=LoraConfig(target_modules=["q_proj"]))
    found = score_layers(CRITERIA["eva"], given).importance
    assert found[0] == 0
    assert sum(found) == pytest.approx(12)
    assert min(found[1:]) > 0


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_eva_reads_both_towers_and_leaves_nothing_behind(tower):
    given = written(24, tower=tower)
    before = {name: p.clone() for name, p in given.model.named_parameters()}
    found = score_layers(CRITERIA["eva"], given).importance
    assert None not in found
    assert sum(found) == pytest.approx(len(found), abs=0.5)
    after = dict(given.model.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], p) for name, p in before.items())


def test_eva_needs_no_labels():
    batches = [{"input_ids": torch.randint(5, 100, (8, 6))} for _ in range(3)]
    assert select_layers(tiny("bert"), batches, criterion="eva", top_n=2).metric == "eva"
    for criterion in ("lora-drop", "pilot"):
        with pytest.raises(DataError, match="these samples have none"):
            select_layers(tiny("bert"), batches, criterion=criterion, top_n=2)


def test_after_eva_has_failed_the_model_is_as_it_was(monkeypatch):
    given = context("bert")
    names = set(dict(given.model.named_parameters()))

    def failing(model, *arguments):
        next(m for m in model.modules() if hasattr(m, "lora_A")).register_forward_hook(lambda *a: 1 / 0)
        raise ValueError("not now")

    monkeypatch.setattr(attach_module, "_start_from_data", failing)
    with pytest.raises(ValueError, match="not now"):
        score_layers(CRITERIA["eva"], given)
    assert set(dict(given.model.named_parameters())) == names
    assert not hasattr(given.model, "peft_config")
    assert all(p.requires_grad for p in given.model.parameters())
    assert None not in score_layers(CRITERIA["cosine"], given).importance


def pilots(monkeypatch, loss_of, **settings):
    class Fake:
        def __init__(self, context, model, layers):
            self.layers = layers

        def advance(self, training, held_back, steps, seed):
            return loss_of(self.layers)

    monkeypatch.setattr(pilot_module, "_Run", Fake)
    return dataclasses.replace(context("bert"), probe_steps=200, **settings)


def test_a_candidate_that_diverges_does_not_win(monkeypatch):
    given = pilots(monkeypatch, lambda layers: math.nan if layers == (2, 3) else sum(layers))
    assert score_layers(CRITERIA["pilot"], given).top(2) == (0, 1)
    given = pilots(monkeypatch, lambda layers: math.nan)
    with pytest.raises(SelectionError, match="every candidate is NaN"):
        score_layers(CRITERIA["pilot"], given)


@pytest.mark.parametrize("limit", [{"threshold": 0.5}, {"objective": "time=0.7"}])
def test_pilot_wants_a_number_of_layers(limit):
    with pytest.raises(SelectionError, match="pilot tries subsets of one size"):
        select_layers(tiny("bert"), ROWS, tokenizer(), criterion="pilot", **limit)


# Two towers, and positions


def test_two_towers_give_any_number_of_their_layers_together():
    rows = [{"prompt": f"w{i} w{i % 7} w{i % 3}", "response": f"w{i % 5} w{i % 2}"} for i in range(20)]
    for number, wanted in (({"top_n": 5}, 5), ({"ratio": 0.3}, 2), ({"top_n": 1}, 1)):
        found = select_layers(tiny("t5"), rows, tokenizer("decoder"), tower="encoder+decoder", **number)
        assert (found.num_layers, len(found.selected_layers)) == (7, wanted)


@pytest.mark.parametrize("criterion", ["last", "random", "spectrum", "lora-drop", "pilot", "eva"])
def test_rules_that_rank_one_tower_are_not_asked_for_two(criterion):
    rows = [{"prompt": f"w{i} w{i % 7} w{i % 3}", "response": f"w{i % 5} w{i % 2}"} for i in range(20)]
    with pytest.raises(LayersiftError, match="one stack of blocks; name one tower"):
        select_layers(tiny("t5"), rows, tokenizer("decoder"), tower="encoder+decoder", criterion=criterion, top_n=3)


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ((False, True, True, True), 3),  # plain text
        ((True, True, True, True), 3),  # a batch with labels everywhere
        ((False, False, True, True), 1),
        ((False, False, False, False), 3),
        (None, 3),
    ],
)
def test_the_last_prompt_token_of_text_without_a_prompt_is_the_last(response, wanted):
    assert POSITIONS["last-prompt"].choose(Example((5, 6, 7, 8), (True,) * 4, response)) == [wanted]
