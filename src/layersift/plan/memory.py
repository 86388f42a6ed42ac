"""The memory that a training takes, by component, and how far the plan may be off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layersift.plan.planner import Plan

MARGIN = 1.1  # of the plan, what has to be there: above the most that a step was measured to take
TAKEN = (0.94, 1.05)  # of the plan above the base, what steps took: the range in benchmarks/results/plan_accuracy.json


@dataclass(frozen=True)
class Memory:
    """Bytes of each component at a training's peak, as planned."""

    base: int  # the loaded model
    adapters: int  # what is trained, a head included
    gradients: int
    optimizer: int  # AdamW's moments
    activations: int  # and whatever else a step holds
    gathered: int = 0  # of several devices: what a device has of the others' weights for a while
    buckets: int = 0  # of several devices: gradients on their way

    @classmethod
    def of(cls, base: int, plan: Plan) -> Memory:
        """Of a step above a loaded model."""
        return cls(base, plan.adapter_bytes, plan.gradient_bytes, plan.optimizer_bytes, plan.activation_bytes)

    @property
    def expected(self) -> int:
        """The plan: the sum of the components."""
        return sum(vars(self).values())

    @property
    def low(self) -> int:
        """The plan, if it is as much above what is taken as it ever was."""
        return round(self.base + TAKEN[0] * (self.expected - self.base))

    @property
    def needed(self) -> float:
        """The plan with its margin, which a limit is held against."""
        return self.expected * MARGIN

    @property
    def high(self) -> int:
        """The same in whole bytes."""
        return round(self.needed)

    @property
    def margin(self) -> int:
        """What is kept free beside the plan."""
        return self.high - self.expected

    def components(self) -> dict[str, int]:
        """Every component by name, the margin last; those of several devices where they are any."""
        of_several = ("gathered", "buckets")
        there = {name: taken for name, taken in vars(self).items() if taken or name not in of_several}
        return {**there, "margin": self.margin}

    def to_json(self) -> dict[str, int]:
        """As JSON values."""
        return {"low": self.low, "expected": self.expected, "high": self.high, **self.components()}


UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def unit_of_bytes(most: int) -> tuple[int, str]:
    """The largest unit of which there is one at least, and its name."""
    return next((unit for unit in UNITS if most >= unit[0]), UNITS[-1])


def tell_bytes(count: float) -> str:
    """A size for people."""
    size, unit = unit_of_bytes(int(count))
    return f"{count / size:.2f} {unit}" if unit == "GB" else f"{count / size:.0f} {unit}"


def in_one_unit(counts: dict[str, int]) -> list[str]:
    """Names with their sizes to two digits, all in the unit of the largest, which the first one names."""
    size, unit = unit_of_bytes(max(counts.values()))
    sizes = {name: count / size for name, count in counts.items()}
    told = [f"{name} {value:,.0f}" if value >= 10 else f"{name} {value:.2g}" for name, value in sizes.items()]
    return [f"{told[0]} {unit}", *told[1:]]
