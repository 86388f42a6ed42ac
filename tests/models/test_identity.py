"""A model is known by every byte of its weights."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from layersift.models.source import fingerprint, matches_record


def write(directory, middle, name="model.safetensors", config="{}"):
    """A model of 6 MiB, whose middle alone says which one it is."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(config)
    values = torch.zeros(3, 512, 1024)
    values[1, 256, :] = middle
    save_file({"w": values}, directory / name)
    return directory


def test_models_that_differ_in_the_middle_of_a_file_are_two(tmp_path):
    one, same, other = (write(tmp_path / n, m) for n, m in (("one", 1.0), ("same", 1.0), ("other", 2.0)))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(one) != fingerprint(write(tmp_path / "config", 1.0, config='{"a": 1}'))
    assert fingerprint(one) != fingerprint(write(tmp_path / "name", 1.0, name="other.safetensors"))


def test_a_file_that_is_written_anew_is_read_again(tmp_path):
    model = write(tmp_path / "model", 1.0)
    before = fingerprint(model)
    write(model, 2.0)
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert fingerprint(model) != before


def test_what_schema_1_recorded_is_still_known(tmp_path):
    """Of the ends of the files, taken down from the version that wrote it."""
    model = write(tmp_path / "model", 1.0)
    recorded = "sha256:a2986d226169437650b5"
    assert matches_record(model, recorded)
    assert matches_record(model, fingerprint(model))
    assert not matches_record(model, recorded[:-1] + ("0" if recorded[-1] != "0" else "1"))
    assert not matches_record(model, "main")
    (model / "config.json").write_text(json.dumps({"a": 1}))
    assert not matches_record(model, recorded)


def test_a_model_without_a_configuration(tmp_path):
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path)
