"""The ways of training the chosen layers, as they are written: ``static``, ``rising``, ``rotating:N@STEPS``, ..."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from layersift.errors import LayersiftError, SelectionError

STATIC, SETTLING, DROPPING = "static", "settling", "dropping"
FORMS = (
    "static",
    "rising",
    "rising:LAYER@SHARE,...",
    "settling",
    "settling:CKA@SHARE",
    "rotating:N@STEPS",
    "dropping:SHARE",
)
SETTLED, LOOK_EVERY = (
    0.99,
    1 / 16,
)  # CKA with the look before, from which on a layer has settled; and how often it is seen
TOP_SHARE, RISEN = 2 / 3, 0.5  # of the layers, how many the plain rising cut leaves; and in which share of the training
ROUNDING = 1e-9  # of a step
_CUT = re.compile(r"([0-9]{1,5})@(0(?:\.[0-9]+)?)")
_ROTATING = re.compile(r"rotating:([1-9][0-9]{0,4})@([1-9][0-9]{0,8})")
_SETTLING = re.compile(r"settling:(0\.[0-9]+)@(0\.[0-9]+)")
_DROPPING = re.compile(r"dropping:(0\.[0-9]+|1|1\.0)")


@dataclass(frozen=True)
class Strategy:
    """Which of the adapted layers are trained at which step, and how far back their gradients are taken."""

    name: str = STATIC
    cuts: tuple[tuple[int, float], ...] = ()  # rising: the lowest layer trained, and from which share of the steps on
    size: int = 0  # rotating: so many layers at a time
    every: int = 0  # rotating: for so many steps
    share: float = 0.0  # dropping: of the steps in which a block without adapters hands its gradient past itself
    settled: float = 0.0  # settling: the CKA with the look before, from which on a layer has settled
    look_every: float = 0.0  # settling: that share of the steps

    def trained(self, adapted: Sequence[int], num_layers: int, step: int, steps: int, seed: int = 0) -> tuple[int, ...]:
        """The layers that are trained at a step (counted from 0) of so many, of those that carry adapters.

        With strategy settling those that may be: which of them are is seen while training.
        """
        if self.name == "rising":
            lowest = max(
                (cut for cut, share in self._cuts(num_layers) if step >= math.ceil(share * steps - ROUNDING)), default=0
            )
            return tuple(i for i in adapted if i >= lowest)
        if self.name == "rotating":
            drawn = random.Random(f"{seed} {step // self.every}").sample(list(adapted), self.size)
            return tuple(sorted(drawn))
        return tuple(adapted)

    def heaviest(self, adapted: Sequence[int]) -> tuple[int, ...]:
        """The layers that are trained at the step that takes the most memory: no draw takes more than the lowest
        ones, and a cut rises from all of them."""
        return tuple(adapted)[: self.size or None]

    def looks(self, steps: int) -> list[int]:
        """The steps before which strategy settling looks at the layers, of so many."""
        if self.name != SETTLING:
            return []
        at = (
            math.ceil(number * self.look_every * steps - ROUNDING) for number in range(1, int(1 / self.look_every) + 1)
        )
        return sorted({step for step in at if step < steps})

    def _cuts(self, num_layers: int) -> tuple[tuple[int, float], ...]:
        if self.cuts:
            return self.cuts
        top = min(round(TOP_SHARE * num_layers), num_layers - 1)
        return tuple((cut, RISEN * cut / top) for cut in range(1, top + 1))

    def require_layers(self, adapted: Sequence[int], num_layers: int) -> None:
        """Refuse layers that the strategy cannot be followed on.

        Raises:
            SelectionError: none would be trained in the end, or there are fewer than are to be drawn.
        """
        if self.name == "rising" and not self.trained(adapted, num_layers, 1, 1):
            cut = max(cut for cut, _ in self._cuts(num_layers))
            raise SelectionError(
                f"strategy rising: the cut ends below layer {cut}, and no layer from there on carries an adapter"
            )
        if self.name == "rotating" and self.size > len(adapted):
            raise SelectionError(
                f"strategy rotating: {self.size} layers at a time, but only {len(adapted)} carry adapters"
            )

    @property
    def keeps_prefix(self) -> bool:
        """Whether what has been frozen below the first trained block stays as it is."""
        return self.name != "rotating"

    @property
    def rises(self) -> bool:
        """Whether what is frozen is never trained again."""
        return self.name in ("rising", SETTLING)


def parse_strategy(text: str) -> Strategy:
    """The strategy that is written so.

    Raises:
        LayersiftError: none of the known forms; the message lists them.
    """
    if text in (STATIC, "rising"):
        return Strategy(text)
    if text == SETTLING:
        return Strategy(text, settled=SETTLED, look_every=LOOK_EVERY)
    if found := _SETTLING.fullmatch(text):
        if not 0 < float(found[2]) <= 0.5:
            raise LayersiftError(f"strategy {text!r}: it looks twice at least; a share of up to 0.5 is needed")
        return Strategy(SETTLING, settled=float(found[1]), look_every=float(found[2]))
    if found := _ROTATING.fullmatch(text):
        return Strategy("rotating", size=int(found[1]), every=int(found[2]))
    if found := _DROPPING.fullmatch(text):
        return Strategy(DROPPING, share=float(found[1]))
    name, _, rest = text.partition(":")
    cuts = [_CUT.fullmatch(part.strip()) for part in rest.split(",")]
    if name != "rising" or not all(cuts):
        raise LayersiftError(
            f"strategy {text!r} is unknown; {', '.join(FORMS)} are possible, as in rising:1@0.125,2@0.25 (layers below "
            "1 are frozen after an eighth of the steps, below 2 after a quarter)"
        )
    pairs = tuple((int(cut[1]), float(cut[2])) for cut in cuts if cut)
    ascending = [list(values) == sorted(set(values)) for values in zip(*pairs, strict=True)]
    if not all(ascending):
        raise LayersiftError(f"strategy {text!r}: layers and shares of the training have to rise")
    return Strategy("rising", pairs)
