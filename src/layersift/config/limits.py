"""What a training may take, in people's own words; common devices by name, with their memory and peak speed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.config.quantities import byte_count, duration, parameter_count, share_of
from layersift.config.recipe import ModelSource
from layersift.errors import LayersiftError, unknown_name

USABLE = 0.94  # of the memory: a driver, and PyTorch's own context, take the rest
UTILISATION = 0.3  # of the peak, what a training is taken to reach where nothing is timed


@dataclass(frozen=True)
class Device:
    """What a device has, by its maker's data sheet: dense products, summed in float32."""

    name: str
    memory_gb: int
    float32: float  # TFLOP/s outside tensor cores, which PyTorch uses for float32 only where it is asked to
    half: float  # TFLOP/s of tensor cores in 16 bits
    has_bfloat16: bool = True

    @property
    def memory_bytes(self) -> int:
        """What a training may take of it."""
        return int(self.memory_gb * 10**9 * USABLE)

    def pace(self, kind: str) -> float:
        """FLOPs a second that a training is taken to reach."""
        return UTILISATION * self.peak(kind)

    def described(self, kind: str) -> str:
        """What that pace is, in words."""
        return f"{100 * UTILISATION:g}% of {self.name}'s {self.peak(kind) / 1e12:.3g} TFLOP/s in {kind}"

    def peak(self, kind: str) -> float:
        """FLOPs a second at most in float32, float16 or bfloat16; where it has no bfloat16, of float32."""
        quick = kind == "float16" or (kind == "bfloat16" and self.has_bfloat16)
        return (self.half if quick else self.float32) * 1e12


DEVICES = (
    Device("RTX 3060", 12, 12.7, 25.5),
    Device("RTX 3090", 24, 35.6, 71),
    Device("RTX 4060 Ti 16GB", 16, 22.1, 44.1),
    Device("RTX 4070", 12, 29.1, 58.3),
    Device("RTX 4080", 16, 48.7, 97.5),
    Device("RTX 4090", 24, 82.6, 165.2),
    Device("RTX 5090", 32, 104.8, 209.5),
    Device("T4", 16, 8.1, 65, has_bfloat16=False),
    Device("V100 16GB", 16, 15.7, 125, has_bfloat16=False),
    Device("V100 32GB", 32, 15.7, 125, has_bfloat16=False),
    Device("L4", 24, 30.3, 121),
    Device("A10", 24, 31.2, 125),
    Device("L40S", 48, 91.6, 362),
    Device("RTX A6000", 48, 38.7, 154.8),
    Device("A100 40GB", 40, 19.5, 312),
    Device("A100 80GB", 80, 19.5, 312),
    Device("H100 80GB", 80, 67, 989),
    Device("H200", 141, 67, 989),
)


def find_device(name: str) -> Device:
    """The device of that name.

    Raises:
        LayersiftError: a device that is not in the table; the message lists those that are.
    """
    known = {device.name.lower(): device for device in DEVICES}
    plain = " ".join(name.lower().removeprefix("nvidia ").removeprefix("geforce ").split())
    if plain not in known:
        raise unknown_name("device", name, [device.name for device in DEVICES])
    return known[plain]


def trained_kind(precision: str | None, element_size: int, quantized: bool) -> str:
    """The type that products are computed in on a GPU.

    Args:
        precision: of automatic mixed precision: bf16, fp16, or None.
        element_size: bytes of a number of the model.
        quantized: whether bitsandbytes unpacks the weights, which it does to bfloat16.
    """
    if precision is not None:
        return {"bf16": "bfloat16", "fp16": "float16"}[precision]
    return "bfloat16" if quantized or element_size == 2 else "float32"


def planned_on(model: ModelSource, device: Device | None) -> ModelSource:
    """The model as a named GPU would load it, in the type of its files; as it is where none is named."""
    return model if device is None or model.device is not None else replace(model, device="cuda")


@dataclass(frozen=True)
class Limits(Checked):
    """What a training may take; None where it does not matter."""

    memory: Annotated[str | None, Meta(description="Of the device, the base model included: 24GB, 500MB.")] = None
    device_name: Annotated[
        str | None, Meta(description="A device elsewhere, for its memory and an estimate of times: RTX 4090, T4, ...")
    ] = None
    time: Annotated[
        str | None, Meta(description="A share of what training all layers takes (0.6), or 3h, 90min, 1h30min.")
    ] = None
    params: Annotated[str | None, Meta(description="Trained parameters: 5M, 800k.")] = None
    adapter_size: Annotated[str | None, Meta(description="The adapter on disk: 20MB.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None and self.device_name is not None:
            raise LayersiftError("memory and device-name both say how much memory there is; give one of them")
        _ = (self.memory_bytes, self.share, self.seconds, self.parameters, self.adapter_bytes)

    @property
    def device(self) -> Device | None:
        """The one that is named."""
        return None if self.device_name is None else find_device(self.device_name)

    @property
    def memory_bytes(self) -> int | None:
        """Of the device."""
        if self.device is not None:
            return self.device.memory_bytes
        return None if self.memory is None else byte_count(self.memory, "memory")

    @property
    def adapter_bytes(self) -> int | None:
        """On disk."""
        return None if self.adapter_size is None else byte_count(self.adapter_size, "adapter-size")

    @property
    def parameters(self) -> int | None:
        """Trained ones."""
        return None if self.params is None else parameter_count(self.params, "params")

    @property
    def share(self) -> float | None:
        """Of all layers' time, where that is how the time was given."""
        try:
            fraction = float(self.time or "")
        except ValueError:
            return None
        if not 0 < fraction <= 100:
            raise LayersiftError(f"time {self.time}: a share of what all layers take, above 0, or a time such as 3h")
        return fraction

    @property
    def seconds(self) -> float | None:
        """Where the time was given as one."""
        return None if self.time is None or self.share is not None else duration(self.time)


@dataclass(frozen=True)
class Devices(Checked):
    """How many devices share a training, and what of it each of them holds."""

    devices: Annotated[
        Annotated[int, Meta(ge=1, le=10**5)] | None,
        Meta(description="Of the plan: so many devices share each batch. [1]"),
    ] = None
    sharding: Annotated[
        Literal["none", "ddp", "fsdp", "zero3"] | None,
        Meta(
            description="Of --devices: none and ddp hold all on each, fsdp cuts frozen blocks as train does, zero3 all."
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharding is not None and self.devices is None:
            raise LayersiftError("sharding is of several devices: give their number as devices, too")

    @property
    def count(self) -> int:
        """Of devices."""
        return self.devices or 1

    @property
    def way(self) -> Literal["ddp", "fsdp", "zero3"]:
        """Of sharing; processes of which nobody says more share by DDP."""
        if self.sharding is None or self.sharding == "none":
            return "ddp"
        return self.sharding

    @property
    def cuts_weights(self) -> bool:
        """Whether no device holds all of the base."""
        return self.count > 1 and self.way != "ddp"

    def rows_each(self, batch_size: int) -> int:
        """Rows of a batch that each device takes.

        Raises:
            LayersiftError: they cannot be shared evenly.
        """
        if batch_size % self.count:
            raise LayersiftError(
                f"--batch-size {batch_size} is shared by {self.count} devices; give a multiple of {self.count}"
            )
        return batch_size // self.count

    def require(self, batch_size: int, quantization: str | None) -> None:
        """Refuse a batch that cannot be shared evenly, and packed weights that would have to be cut.

        Raises:
            LayersiftError: that.
        """
        self.rows_each(batch_size)
        if self.cuts_weights and quantization is not None:
            raise LayersiftError(f"--sharding {self.way} cuts weights, and quantised ones are packed; leave one away")

    def to_json(self) -> dict[str, Any] | None:
        """How many there are and how they share; None of one alone."""
        return {"devices": self.count, "sharding": self.way} if self.count > 1 else None

    def described(self) -> str:
        """Both, in words."""
        return f"{self.count} devices ({self.way})"


@dataclass(frozen=True)
class TrialSettings(Checked):
    """Whether what fits is tried on the data."""

    trial: Annotated[
        str | None,
        Meta(description="Try what fits on rows held back, within that share of what training all layers takes: 10%."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.share

    @property
    def share(self) -> float | None:
        """Of the FLOPs that training all layers takes."""
        return None if self.trial is None else share_of(self.trial, "trial")
