"""The memory of common devices by name, for those who ask from another machine."""

from __future__ import annotations

from layersift.errors import unknown_name

MEMORY_GB = {
    "RTX 3060": 12,
    "RTX 3090": 24,
    "RTX 4060 Ti 16GB": 16,
    "RTX 4070": 12,
    "RTX 4080": 16,
    "RTX 4090": 24,
    "RTX 5090": 32,
    "T4": 16,
    "V100 16GB": 16,
    "V100 32GB": 32,
    "L4": 24,
    "A10": 24,
    "L40S": 48,
    "RTX A6000": 48,
    "A100 40GB": 40,
    "A100 80GB": 80,
    "H100 80GB": 80,
    "H200": 141,
}
USABLE = 0.94  # of it: a driver, and PyTorch's own context, take the rest


def device_memory(name: str) -> int:
    """The bytes that a training may take of a device.

    Raises:
        LayersiftError: a device that is not in the table; the message lists those that are.
    """
    known = {one.lower(): size for one, size in MEMORY_GB.items()}
    plain = " ".join(name.lower().removeprefix("nvidia ").removeprefix("geforce ").split())
    if plain not in known:
        raise unknown_name("device", name, MEMORY_GB)
    return int(known[plain] * 10**9 * USABLE)
