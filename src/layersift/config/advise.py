"""What a training may take, in people's own words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.config.quantities import parameter_count
from layersift.errors import LayersiftError

_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Limits(Checked):
    """What a training may take; None where it does not matter."""

    memory: Annotated[str | None, Meta(description="Of the device, the base model included: 24GB, 500MB.")] = None
    time: Annotated[
        str | None, Meta(description="A share of what training all layers takes (0.6), or 3h, 90min, 1h30min.")
    ] = None
    params: Annotated[str | None, Meta(description="Trained parameters: 5M, 800k.")] = None
    adapter_size: Annotated[str | None, Meta(description="The adapter on disk: 20MB.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = (self.memory_bytes, self.share, self.seconds, self.parameters, self.adapter_bytes)

    @property
    def memory_bytes(self) -> int | None:
        """Of the device."""
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
            found = float(self.time or "")
        except ValueError:
            return None
        if not 0 < found <= 100:
            raise LayersiftError(f"time {self.time}: a share of what all layers take, above 0, or a time such as 3h")
        return found

    @property
    def seconds(self) -> float | None:
        """Where the time was given as one."""
        return None if self.time is None or self.share is not None else duration(self.time)


def byte_count(text: str, what: str) -> int:
    """``24GB``, ``500 MiB`` as bytes; GB are 10^9, GiB 2^30.

    Raises:
        LayersiftError: something else.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([kmgt]i?b)", text.strip().lower())
    count = round(float(found[1]) * _BYTES[found[2]]) if found else 0
    if count < 1:
        raise LayersiftError(f"{what} {text!r}: expected a size such as 24GB, 500MB or 20MiB")
    return count


def duration(text: str) -> float:
    """``3h``, ``90min`` or ``1h30min`` in seconds.

    Raises:
        LayersiftError: something else.
    """
    parts = re.findall(r"(\d{1,9}(?:\.\d{1,9})?)\s*(d|h|min|m|sec|s)(?=[\d\s]|$)", text.strip().lower())
    whole = re.sub(r"\s", "", text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != whole or seconds <= 0:
        raise LayersiftError(f"time {text!r}: expected a share such as 0.6, or a time such as 3h, 90min or 1h30min")
    return seconds
