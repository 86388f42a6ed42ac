"""The table and the picture."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from layersift.compare.report import ArmResult, caption, draw_importance, markdown, require_picture, table_rows
from layersift.errors import LayersiftError
from tiny import selection_of, tiny

ALL = ArmResult("all", "1111", 50, {"accuracy": 0.8, "f1": None}, 0.05, 1000, 20.0, 2**30, 2**20)
HALF = ArmResult("selected", "0011", 50, {"accuracy": 0.76, "f1": 0.5}, 0.06, 500, 15.0, 2**29, 2**19)
NONE = ArmResult("untouched", "", 50, {"accuracy": 0.2, "f1": 0.1}, 0.05)


def test_ratios_are_to_all_layers():
    header, half, everything, none = table_rows([HALF, ALL, NONE])
    assert header[:3] == ["layers", "accuracy ↑", "f1 ↑"]
    assert half == [
        "selected 0011",
        "0.7600 ± 0.0600 (0.95)",
        "0.5000",
        "500 (0.50)",
        "15.0 (0.75)",
        "512 MiB (0.50)",
        "0.50 MiB (0.50)",
    ]
    assert everything[2] == "undefined"
    assert none[3:] == ["-"] * 4


def test_without_all_layers_there_are_no_ratios():
    assert table_rows([HALF])[1][1] == "0.7600 ± 0.0600"


def test_lower_losses_are_marked():
    loss = ArmResult("selected", "01", 5, {"loss": 0.5, "exact_match": 0.1})
    assert table_rows([loss])[0][1:3] == ["loss ↓", "exact match ↑"]


def test_markdown_and_caption():
    text = markdown(table_rows([HALF, ALL, NONE]))
    assert text.splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert "classification head is random" in caption([HALF, ALL, NONE])
    assert "random" not in caption([HALF, ALL])


def test_the_picture_shows_every_layer_and_what_is_undefined(tmp_path):
    selection = replace(
        selection_of(tiny("bert"), [2, 3]), importance=(None, 0.1, 0.3, 0.2), undefined={0: "its input is constant"}
    )
    draw_importance(selection, tmp_path / "a" / "p.svg")
    tree = ET.parse(tmp_path / "a" / "p.svg")
    text = (tmp_path / "a" / "p.svg").read_text()
    assert tree.getroot().tag.endswith("svg")
    for words in ("undefined", "selected (2)", "frozen", "importance, cka"):
        assert words in text
    draw_importance(selection, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LayersiftError, match=r"unknown kind of picture '.bmp'; known: .png"):
        require_picture(tmp_path / "p.bmp")
