"""Limits as people write them."""

import pytest

from layersift.config.limits import Limits
from layersift.errors import LayersiftError


@pytest.mark.parametrize(
    ("given", "read", "value"),
    [
        ({"memory": "24GB"}, "memory_bytes", 24 * 10**9),
        ({"memory": "1.5 GiB"}, "memory_bytes", 3 * 2**29),
        ({"adapter_size": "20mb"}, "adapter_bytes", 20 * 10**6),
        ({"params": "5M"}, "parameters", 5_000_000),
        ({"time": "0.6"}, "share", 0.6),
        ({"time": "0.6"}, "seconds", None),
        ({"time": "3h"}, "seconds", 10800),
        ({"time": "3h"}, "share", None),
        ({"time": "90min"}, "seconds", 5400),
        ({"time": "1h30min"}, "seconds", 5400),
        ({"time": "1h 30m"}, "seconds", 5400),
        ({"time": "1d"}, "seconds", 86400),
        ({}, "memory_bytes", None),
        ({}, "seconds", None),
    ],
)
def test_limits_are_read(given, read, value):
    assert getattr(Limits(**given), read) == value


@pytest.mark.parametrize(
    "given",
    [
        {"memory": "24"}, {"memory": "a lot"}, {"memory": "0GB"}, {"memory": "-1GB"}, {"adapter_size": "20"},
        {"params": "none"}, {"time": "soon"}, {"time": "0"}, {"time": "-1"}, {"time": "3 parsecs"}, {"time": "nan"},
        {"time": "inf"}, {"time": "0h"}, {"time": "h3"}, {"time": "3h later"}, {"memory": ""}, {"time": ""},
    ],
)  # fmt: skip
def test_what_is_no_limit_is_refused_in_one_line(given):
    with pytest.raises(LayersiftError) as refused:
        Limits(**given)
    (name,) = given
    assert name.replace("_", "-") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_device_by_its_name_limits_the_memory():
    assert Limits(device_name="RTX 4090").memory_bytes == int(24e9 * 0.94)
    assert Limits(device_name="NVIDIA GeForce  RTX 4090").memory_bytes is not None
    with pytest.raises(LayersiftError, match=r"RTX 4090.*T4"):
        Limits(device_name="RTX 9999")
    with pytest.raises(LayersiftError, match="device-name"):
        Limits(device_name="T4", memory="8GB")
