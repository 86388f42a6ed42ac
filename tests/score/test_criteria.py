"""Every criterion against an independent computation on a small model, and the facts that its record declares."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from scipy.stats import rankdata

from contexts import KINDS, context, gradients_one_by_one
from layersift import select_layers
from layersift.data.examples import labelled_batch
from layersift.errors import LayersiftError, SelectionError
from layersift.measures import TOKEN_MEASURES
from layersift.records.selection import LayerScores
from layersift.score.criteria import lora_drop as lora_drop_module
from layersift.score.criteria import pilot as pilot_module
from layersift.score.criteria.alpha_hill import hill_exponent
from layersift.score.criteria.kappa import condition_number
from layersift.score.criteria.pilot import candidates
from layersift.score.criteria.spectrum import signal_to_noise
from layersift.score.criterion import announce_criteria, score_layers
from layersift.score.probe import Undefined
from layersift.score.registry import CRITERIA, find_criterion
from layersift.score.short_training import with_adapters
from tiny import read_at, tiny
from words import tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_each_sample_are_those_of_ordinary_autograd(name):
    given = context(name)
    truth, counts = gradients_one_by_one(given)
    ours = given.gradients()
    assert ours.labelled.tolist() == counts.tolist()
    assert {(m.layer, m.name) for m in ours.modules} == {(i, leaf) for i in truth for leaf in truth[i]}
    for m in ours.modules:
        wanted = torch.stack(truth[m.layer][m.name])
        weight = given.model.get_submodule(f"{given.stack.block_path(m.layer)}.{m.name}").weight
        norms, inner = wanted.square().sum((1, 2)), (wanted * weight).sum((1, 2))
        assert torch.allclose(m.squared_norm.double(), norms, rtol=1e-4)
        assert torch.allclose(m.inner.double(), inner, rtol=1e-4, atol=1e-4 * float(inner.abs().max()))


@pytest.mark.parametrize("name", KINDS)
def test_gradient_criteria_follow_their_formulas(name):
    given = context(name)
    truth, counts = gradients_one_by_one(given)
    layers = [[torch.stack(g) for g in truth[i].values()] for i in range(given.num_layers)]
    weights = [
        [given.model.get_submodule(f"{given.stack.block_path(i)}.{leaf}").weight.double() for leaf in truth[i]]
        for i in range(given.num_layers)
    ]
    sizes = [sum(w.numel() for w in ws) for ws in weights]
    fisher = [sum(float(g.square().sum() / len(g)) for g in gs) for gs in layers]
    norms = [sum(float((g.flatten(1).norm(dim=1) / counts).mean()) for g in gs) for gs in layers]
    together = [torch.cat([g.flatten(1) for g in gs], dim=1) for gs in layers]
    relative = [
        float((g.norm(dim=1) / counts).mean()) / math.sqrt(sum(float(w.square().sum()) for w in ws))
        for g, ws in zip(together, weights, strict=True)
    ]
    effects = [
        sum(float(((g * w).sum((1, 2)).abs() / counts).mean()) for g, w in zip(gs, ws, strict=True))
        for gs, ws in zip(layers, weights, strict=True)
    ]
    wanted = {
        "fisher-sum": fisher,
        "fisher": [f / s for f, s in zip(fisher, sizes, strict=True)],
        "gradient-norm": norms,
        "rgn": relative,
        "taylor": effects,
    }
    for criterion, values in wanted.items():
        assert score_layers(CRITERIA[criterion], given).importance == pytest.approx(values, rel=1e-4), criterion
    exact = [float(g.mean(0).square().sum() / g.var(0).sum()) for g in together]
    assert score_layers(CRITERIA["snr"], given).importance == pytest.approx(exact, rel=0.35)  # from sketches


def test_the_lora_b_device_agrees_with_the_exact_norms():
    """Attached adapters with B = 0: |dL/dB|^2 x 3 fan_in / (r scaling^2) is |dL/dW|^2 on average."""
    given = context("llama", count=4)
    from layersift.adapt.attach import attached

    exact = [sum(float(m.squared_norm.sum()) for m in ms) for ms in given.gradients().by_layer(4)]
    config = LoraConfig(r=64, lora_alpha=64, target_modules="all-linear")
    estimate = [0.0] * 4
    with attached(given.model, given.stack, range(4), config) as model:
        for example in given.examples:
            model.zero_grad()
            batch = labelled_batch([example], 0, "instruction")
            loss = model(**batch).loss * (batch["labels"] != -100).sum()
            loss.backward()
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    layer = int(name.split(".layers.")[1].split(".")[0])
                    fan_in = model.get_parameter(name.replace("lora_B", "lora_A")).shape[1]
                    estimate[layer] += float(parameter.grad.square().sum()) * 3 * fan_in / 64
    assert estimate == pytest.approx(exact, rel=0.2)


def test_resnorm_is_the_gradient_in_the_metric_of_the_activations():
    given = context("llama", count=8)
    truth, _ = gradients_one_by_one(given)
    entering = {}
    handles = [
        given.model.get_submodule(f"{given.stack.block_path(i)}.{leaf}").register_forward_hook(
            lambda m, a, o, key=(i, leaf): entering.setdefault(key, []).append(a[0].detach()[0].double())
        )
        for i in truth
        for leaf in truth[i]
    ]
    for example in given.examples:
        with torch.no_grad():
            given.model(input_ids=torch.tensor([example.input_ids]))
    for handle in handles:
        handle.remove()
    wanted = []
    for i in range(given.num_layers):
        squared = 0.0
        for leaf, gradients in truth[i].items():
            x = torch.cat(entering[i, leaf])
            second = x.T @ x / len(x)
            second += 1e-3 * second.trace() / len(second) * torch.eye(len(second))
            gradient = torch.stack(gradients).mean(0)
            squared += float((gradient @ torch.linalg.inv(second) @ gradient.T).trace())
        wanted.append(math.sqrt(squared))
    assert score_layers(CRITERIA["resnorm"], given).importance == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("shape", [(24, 24), (24, 48), (60, 20)])
def test_weight_criteria_follow_their_formulas(shape):
    weight = np.random.default_rng(0).normal(size=shape) + 3 * np.outer(np.ones(shape[0]), np.ones(shape[1]))
    values = np.linalg.svd(weight, compute_uv=False)
    threshold = np.subtract(*np.percentile(values, [75, 25])) / 1.349 * (1 + math.sqrt(min(shape) / max(shape)))
    above, below = values[values > threshold].sum(), values[values <= threshold].sum() or 1.0
    tensor = torch.from_numpy(weight)
    assert signal_to_noise(tensor) == pytest.approx(above / below / values[0], rel=1e-9)
    assert condition_number(tensor) == pytest.approx(values[0] / (values[-1] + 1e-8), rel=1e-9)
    lam = np.sort(values**2)
    tail = np.log(lam[len(lam) // 2 :])
    assert hill_exponent(tensor) == pytest.approx(1 + len(tail) / (tail - tail[0]).sum(), rel=1e-9)
    assert math.isnan(hill_exponent(torch.zeros(4, 4)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("criterion", "of"), [("spectrum", signal_to_noise), ("kappa", condition_number), ("alpha-hill", hill_exponent)]
)
def test_weights_are_ranked_within_their_kind(name, criterion, of):
    given = context(name)
    kinds = {}
    for i, block in enumerate(given.stack.blocks(given.model)):
        for leaf, module in block.named_modules():
            if hasattr(module, "weight") and module.weight.ndim == 2:
                kinds.setdefault(leaf, {})[i] = of(module.weight.detach())
    standing = np.mean([(rankdata(list(v.values())) - 1) / 3 for v in kinds.values()], axis=0)
    assert len(kinds) == (7 if name == "llama" else 4)
    found = score_layers(CRITERIA[criterion], given)
    assert found.importance == pytest.approx(standing.tolist())
    order = sorted(range(4), key=lambda i: (standing[i] * (1 if criterion == "kappa" else -1), i))
    assert found.ranking == tuple(order)


def test_eva_gives_the_ranks_that_the_explained_variance_wins():
    given = context("llama", count=64, adapter=LoraConfig(target_modules=["q_proj", "down_proj"]))
    entering = {}
    handles = [
        given.model.get_submodule(f"{given.stack.block_path(i)}.{leaf}").register_forward_hook(
            lambda m, a, o, key=(i, leaf): entering.setdefault(key, []).append(a[0].detach()[0])
        )
        for i in range(4)
        for leaf in ("self_attn.q_proj", "mlp.down_proj")
    ]
    for example in given.examples:
        with torch.no_grad():
            given.model(input_ids=torch.tensor([example.input_ids]))
    for handle in handles:
        handle.remove()
    shares = {}
    for key, rows in entering.items():
        x = torch.cat(rows).double()
        values = torch.linalg.svdvals(x - x.mean(0)).square()
        shares[key] = (values / values.sum())[:16].tolist()
    pooled = sorted(((share, key) for key, found in shares.items() for share in found), reverse=True)[: 8 * len(shares)]
    wanted = [sum(key[0] == layer for _, key in pooled) / 16 for layer in range(4)]
    found = score_layers(CRITERIA["eva"], given).importance
    assert found == pytest.approx(wanted, abs=2 / 16)  # PEFT's principal directions are incremental
    assert sum(found) == pytest.approx(4, abs=0.01)


def test_lora_drop_measures_what_adapters_add_to_the_outputs():
    given = context("llama", count=4, adapter=LoraConfig(target_modules=["q_proj"]))
    added, wanted = [0.0] * 4, [0.0] * 4
    with with_adapters(given) as model, torch.no_grad():
        modules = [given.model.get_submodule(f"{given.stack.block_path(i)}.self_attn.q_proj") for i in range(4)]
        for i, module in enumerate(modules):
            torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1 * (i + 1))
        update = [m.lora_B["default"].weight @ m.lora_A["default"].weight * 2 for m in modules]  # alpha 16 / r 8
        hooks = [
            m.base_layer.register_forward_hook(
                lambda _m, a, o, i=i: wanted.__setitem__(i, wanted[i] + float((a[0] @ update[i].T).square().sum()))
            )
            for i, m in enumerate(modules)
        ]
        for example in given.examples:
            model(input_ids=torch.tensor([example.input_ids]))
        for hook in hooks:
            hook.remove()
        with lora_drop_module._measuring(given, added):
            for example in given.examples:
                model(input_ids=torch.tensor([example.input_ids]))
    assert added == pytest.approx(wanted, rel=1e-4)
    shares = score_layers(CRITERIA["lora-drop"], dataclasses.replace(given, probe_steps=3)).importance
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0


def test_pilot_halves_the_candidates_and_its_winner_comes_first(monkeypatch):
    given = dataclasses.replace(context("bert"), probe_steps=200)
    proposed = candidates(given)
    assert len(proposed) == len(set(proposed)) == 6  # all pairs of four layers
    trained = []

    class Fake:
        def __init__(self, context, model, layers):
            self.layers = layers

        def advance(self, training, held_back, steps, seed):
            assert not {id(e) for e in training} & {id(e) for e in held_back}
            trained.append(steps)
            return abs(sum(self.layers) - 4.2)

    monkeypatch.setattr(pilot_module, "_Run", Fake)
    found = score_layers(CRITERIA["pilot"], given)
    assert found.top(2) == (1, 3)
    assert len(trained) == 6 + 3  # and one is left
    assert sum(trained) <= 200
    with pytest.raises(SelectionError, match="pilot: 5 steps are too few for 6 candidates"):
        score_layers(CRITERIA["pilot"], dataclasses.replace(given, probe_steps=5))


def test_pilot_chooses_the_candidate_that_learns_best():
    """Only the last layer may still mix what the first token's class token reads: a task that tells subsets apart."""
    given = dataclasses.replace(context("bert", count=32), probe_steps=120)
    first, again = (score_layers(CRITERIA["pilot"], given) for _ in range(2))
    assert first.importance == again.importance
    assert first.top(2) in candidates(given)


def test_plain_rules():
    given = context("bert")
    six = dataclasses.replace(given, stack=dataclasses.replace(given.stack, num_layers=6))
    chosen = {name: score_layers(CRITERIA[name], six).top(3) for name in CRITERIA if CRITERIA[name].needs == "nothing"}
    random = chosen.pop("random")
    assert chosen == {
        "first": (0, 1, 2),
        "last": (3, 4, 5),
        "middle": (2, 3, 4),
        "alternate": (1, 3, 5),
        "first-and-last": (0, 1, 5),
    }
    others = {score_layers(CRITERIA["random"], dataclasses.replace(six, seed=s)).top(3) for s in range(20)}
    assert random in others
    assert len(others) > 8


def test_token_criteria_are_means_over_tokens_and_samples():
    given = context("llama")
    announce_criteria([CRITERIA["cosine"], CRITERIA["angular"], CRITERIA["update-norm"], CRITERIA["ls-lora"]], given)
    per_token = {name: [[] for _ in range(4)] for name in TOKEN_MEASURES}
    at_prompt = [[] for _ in range(4)]
    raw = []
    handle = given.stack.blocks(given.model)[-1].register_forward_hook(
        lambda m, a, o: raw.append(o[0] if isinstance(o, tuple) else o)
    )
    for example in given.examples:
        with torch.no_grad():
            states = given.model(torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states
        states = [s[0].double() for s in (*states[:-1], raw[-1])]
        for i in range(4):
            for name, measure in TOKEN_MEASURES.items():
                per_token[name][i].append(float(measure.between(states[i], states[i + 1]).mean()))
            at_prompt[i].append(float(1 - torch.cosine_similarity(states[i][2], states[i + 1][2], dim=0)))
    handle.remove()
    for name, layers in per_token.items():
        assert score_layers(CRITERIA[name], given).importance == pytest.approx(np.mean(layers, axis=1), rel=1e-4)
    assert score_layers(CRITERIA["ls-lora"], given).importance == pytest.approx(np.mean(at_prompt, axis=1), rel=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_every_layer_and_leaves_the_model_as_it_was(criterion, name):
    given = context(name, count=16, probe_steps=30)
    given.model.get_submodule(given.stack.block_path(1)).requires_grad_(False)
    before = {k: v.clone() for k, v in given.model.state_dict().items()}
    required = {n: p.requires_grad for n, p in given.model.named_parameters()}
    classes = [type(m) for m in given.model.modules()]
    found = score_layers(CRITERIA[criterion], given)
    assert len(found.importance) == 4
    assert all((v is None) == (i in found.undefined) for i, v in enumerate(found.importance))
    assert found.ranking
    assert found.direction == CRITERIA[criterion].direction
    after = given.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {n: p.requires_grad for n, p in given.model.named_parameters()} == required
    assert [type(m) for m in given.model.modules()] == classes
    assert not given.model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in given.model.modules())
    assert not hasattr(given.model, "peft_config")


@pytest.mark.usefixtures("no_trial")
def test_one_pass_serves_all_criteria_and_all_subsets_of_the_sample(monkeypatch):
    given = context("bert")
    criteria = [c for c in CRITERIA.values() if c.needs == "forward" and c.by_sample]
    criteria += [find_criterion(f"cka@{p}") for p in ("last", "mean")]
    announce_criteria(criteria, given)
    runs = []
    given.model.register_forward_pre_hook(lambda m, a: runs.append(1))
    for criterion in criteria:
        score_layers(criterion, given)
    passes = len(runs)
    assert passes == 1
    half = torch.tensor([0, 2, 3, 5, 8, 9, 12, 14])
    part = dataclasses.replace(context("bert"), examples=tuple(given.examples[i] for i in half))
    for criterion in criteria:
        some = score_layers(criterion, given.of(half))
        assert some.num_samples == 8
        alone = score_layers(criterion, part)
        assert some.importance == pytest.approx(alone.importance, abs=1e-4), criterion.name
    assert len(runs) == passes


def test_positions_are_read_as_if_each_had_been_read_alone():
    given = context("llama")
    announce_criteria([find_criterion("cka@first"), find_criterion("cka@last")], given)
    for position in ("first", "last"):
        from layersift.represent.positions import POSITIONS

        alone = read_at(given.model, given.stack, given.examples, POSITIONS[position])
        for ours, theirs in zip(given.representations(position).states, alone.states, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_function_of_the_users_own_is_a_criterion(tmp_path):
    rows = [{"text": f"w{i} w{i % 7} w{i % 3}", "label": i % 2} for i in range(20)]
    found = select_layers(tiny("bert"), rows, tokenizer(), top_n=2, criterion=lambda s: [5, None, 7, 6])
    assert found.selected_layers == (2, 3)
    assert found.undefined == {1: "<lambda> gives it none"}
    path = tmp_path / "rules.py"
    path.write_text(
        "def spread(context):\n    return [float(s.var()) for s in context.representations('mean').states[1:]]\n"
    )
    found = select_layers(tiny("bert"), rows, tokenizer(), top_n=2, criterion=f"{path}:spread")
    assert found.metric == "rules:spread"
    assert len(found.ranking) == 4
    with pytest.raises(SelectionError, match="gave 2 scores for 4 layers"):
        select_layers(tiny("bert"), rows, tokenizer(), top_n=2, criterion=lambda s: [1, 2])


def test_bottom_turns_a_ranking_round():
    given = context("bert")
    top, bottom = (score_layers(find_criterion(name), given) for name in ("cka@mean", "bottom:cka@mean"))
    assert top.importance == bottom.importance
    assert top.ranking == bottom.ranking[::-1]
    low = score_layers(find_criterion("bottom:kappa"), given)
    assert low.direction == "high"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ckaa", "unknown criterion 'ckaa'. Did you mean 'cka'"),
        ("cka@end", "unknown position 'end'"),
        ("fisher@last", "reads no position"),
        ("ls-lora@last", "reads no position"),
        ("bottom:nothing", "unknown criterion 'nothing'"),
        ("missing.py:f", "no such file"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(LayersiftError, match=message):
        find_criterion(name)


def test_files_with_rules_that_cannot_be_used(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text("x = 1\n")
    with pytest.raises(LayersiftError, match="has no function 'f'"):
        find_criterion(f"{path}:f")
    path.write_text("def f(:\n")
    with pytest.raises(LayersiftError, match="not Python"):
        find_criterion(f"{path}:f")


def test_direction_decides_the_ranking_and_undefined_layers_are_not_in_it():
    scores = LayerScores("x", (3.0, None, 1.0, 2.0), {1: "why"}, (None,) * 4, 8, 0.0, "low")
    assert scores.ranking == (2, 3, 0)
    assert scores.top(4) == (0, 1, 2, 3)
    assert isinstance(Undefined("why").why, str)


def test_gradients_need_a_head():
    from transformers import BertModel

    rows = [{"text": f"w{i} w{i % 7} w{i % 3}", "label": i % 2} for i in range(20)]
    with pytest.raises(LayersiftError, match="BertModel has no head"):
        select_layers(tiny("bert", BertModel), rows, tokenizer(), criterion="fisher")


def test_gradients_need_labels():
    batches = [{"input_ids": torch.randint(5, 100, (8, 6))} for _ in range(2)]
    with pytest.raises(LayersiftError, match="gradients need labels"):
        select_layers(tiny("bert"), batches, criterion="fisher")


def test_a_decoder_is_taken_to_predict_the_text_of_unlabelled_batches():
    batches = [{"input_ids": torch.randint(5, 100, (8, 6))} for _ in range(2)]
    labelled = [{**b, "labels": torch.cat([torch.full((8, 1), -100), b["input_ids"][:, 1:]], 1)} for b in batches]
    found, wanted = (select_layers(tiny("llama"), b, criterion="fisher") for b in (batches, labelled))
    assert found.importance == pytest.approx(wanted.importance)
    assert select_layers(tiny("llama"), batches).position == "response-mean"


def test_threshold_takes_every_layer_beyond_it():
    rows = [{"text": f"w{i} w{i % 7} w{i % 3}", "label": i % 2} for i in range(20)]
    found = select_layers(tiny("bert"), rows, tokenizer(), criterion=lambda s: [0.1, 0.5, 0.2, 0.9], threshold=0.15)
    assert found.mask == "0111"
    assert found.rule == "top 3 of 4, those that score beyond 0.15"
    with pytest.raises(SelectionError, match="threshold 2: no layer scores beyond it"):
        select_layers(tiny("bert"), rows, tokenizer(), criterion=lambda s: [0.1, 0.5, 0.2, 0.9], threshold=2)


def test_criteria_are_listed_with_their_facts(call, tmp_path):
    listed = call("criteria", "--json", cwd=tmp_path)
    assert listed.returncode == 0
    facts = {entry["name"]: entry for entry in json.loads(listed.stdout)}
    assert list(facts) == list(CRITERIA)
    assert all(entry["cost"] and entry["source"] and entry["summary"] for entry in facts.values())
    shown = call("criteria", cwd=tmp_path)
    assert all(name in shown.stdout for name in CRITERIA)
    assert "2602.04019" in listed.stdout  # sources stand in the JSON, and on the page that the screen names
    assert "docs/criteria" in shown.stdout


PAGES = Path(__file__).parents[2] / "docs" / "criteria"


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_has_a_page_with_its_facts(name):
    page = (PAGES / f"{name}.md").read_text()
    criterion = CRITERIA[name]
    for fact in (criterion.needs, criterion.cost, criterion.source, "## Formula", "## When it fails"):
        assert fact in page
    assert ("lowest first" in page) == (criterion.direction == "low")
    assert f"[{name}]({name}.md) | {criterion.summary} |" in (PAGES / "README.md").read_text()
