"""What might be trained on a model: all layers at several ranks, fewer layers, kinds of modules, a rising cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from layersift.adapt.kinds import kinds_of_modules
from layersift.adapt.methods import adapter_config, alpha_at_rank, has_rank, scales_by_root
from layersift.adapt.ranks import ATTENTION, MLP
from layersift.config.train import TrainSettings
from layersift.load.blocks import BlockStack
from layersift.records.scores import mask_of

KINDS_TOLD = {ATTENTION: "attention", MLP: "what is not attention"}
LOWEST_SHARE = 8  # ranks down to an eighth of the one asked for
# In the order in which they are advised where nothing has been measured on the task: by what our own runs say, then by
# what leaves out least.
# docs/advise.md says what that rests on.
KINDS = ("all", "lower rank", "rising", "last", "shorter", "modules", "last, lower rank", "few")


@dataclass(frozen=True)
class Candidate:
    """One way of training."""

    name: str
    kind: str  # of KINDS
    layers: tuple[int, ...]
    settings: TrainSettings

    def mask(self, num_layers: int) -> str:
        """A digit a layer."""
        return mask_of(self.layers, num_layers)


def candidates_of(model: nn.Module, stack: BlockStack, train: TrainSettings) -> list[Candidate]:
    """Ways of training, those that leave out least first."""
    found = list(_candidates(model, stack, train))
    return sorted(found, key=lambda candidate: KINDS.index(candidate.kind))


def _candidates(model: nn.Module, stack: BlockStack, train: TrainSettings) -> Iterator[Candidate]:
    layers = stack.num_layers
    everything = tuple(range(layers))
    yield Candidate("all layers", "all", everything, train)
    lower = _lower_ranks(train)
    for settings in lower:
        yield Candidate(f"all layers at rank {settings.rank}", "lower rank", everything, settings)
    if layers > 2 and train.method != "adalora" and train.strategy == "static":
        rising = replace(train, strategy="rising")
        yield Candidate("all layers, the cut rising", "rising", everything, rising)
    for kind, names in kinds_of_modules(model, stack, adapter_config(train, "text", 1)).items():
        settings = replace(train, target_modules=names, ranks={})
        yield Candidate(f"{KINDS_TOLD[kind]} alone in all layers", "modules", everything, settings)
    for parts, kind in ((0.75, "last"), (0.5, "last"), (0.25, "few")):
        count = max(1, round(parts * layers))
        last = tuple(range(layers - count, layers))
        if count < layers:
            yield Candidate(f"the last {count} of {layers} layers", kind, last, train)
            if kind == "last" and lower:
                halved = lower[0]
                name = f"the last {count} of {layers} layers at rank {halved.rank}"
                yield Candidate(name, "last, lower rank", last, halved)
    yield Candidate(f"the last layer of {layers} alone", "few", everything[-1:], train)


def _lower_ranks(train: TrainSettings) -> list[TrainSettings]:
    """Half the rank, a quarter, ..., with updates scaled as before."""
    if not has_rank(train.method) or train.ranks or "r" in train.method_options:
        return []
    ranks = [train.rank // share for share in (2, 4, LOWEST_SHARE) if train.rank // share >= 1]
    by_root = scales_by_root(train.method, train.method_options)
    alphas = {rank: alpha_at_rank(train.alpha, train.rank, rank, by_root) for rank in ranks}
    return [replace(train, rank=rank, alpha=alpha) for rank, alpha in alphas.items()]
