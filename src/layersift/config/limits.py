"""What a training may take, in people's own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from layersift.config.devices import Device, find_device
from layersift.config.fields import Checked
from layersift.config.quantities import byte_count, duration, parameter_count, share_of
from layersift.errors import LayersiftError


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
