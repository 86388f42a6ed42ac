"""Trainings that are packed into one file for the repository come back as they were."""

import json
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import packed

RIGHT_OR_WRONG = st.lists(st.sampled_from([0.0, 1.0]), max_size=40)
LOSSES = st.lists(st.floats(0, 9).map(lambda x: round(x, 6)), max_size=9)
WEIGHTS = st.lists(st.integers(1, 3).map(float), max_size=2)
CELLS = st.fixed_dictionaries(
    {"cell": st.fixed_dictionaries({"mask": st.text("01", max_size=6)}), "outcomes": RIGHT_OR_WRONG | LOSSES},
    optional={
        "looks": st.lists(
            st.fixed_dictionaries(
                {"share": st.floats(0, 1), "outcomes": RIGHT_OR_WRONG}, optional={"weights": WEIGHTS}
            ),
            max_size=3,
        ),
        "weights": WEIGHTS,
        "made": st.fixed_dictionaries({"device": st.sampled_from(["cpu", "cuda"])}),
    },
)


@given(cells=st.lists(CELLS, max_size=5))
def test_what_is_unpacked_is_what_was_packed(cells, tmp_path_factory):
    place, other = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("other")
    for i, cell in enumerate(cells):
        inside = place / ("cells" if i % 2 else "levels/cells")
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{i}.json").write_text(json.dumps(cell))
    packed.pack(place)
    (other / packed.PACKED).write_text((place / packed.PACKED).read_text())
    packed.unpack(other)
    found = {str(p.relative_to(other)): json.loads(p.read_text()) for p in other.rglob("cells/*.json")}
    wanted = {str(p.relative_to(place)): json.loads(p.read_text()) for p in place.rglob("cells/*.json")}
    assert found == wanted
    assert len(found) == len(cells)


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "cells").mkdir()
    file = tmp_path / "cells" / "one.json"
    file.write_text(json.dumps({"cell": {}, "outcomes": [1.0]}))
    packed.pack(tmp_path)
    file.write_text(json.dumps({"cell": {}, "outcomes": [0.0]}))
    packed.unpack(tmp_path)
    assert json.loads(file.read_text())["outcomes"] == [0.0]


def test_a_comparison_loses_its_blanks_and_nothing_else(tmp_path):
    table = {"rows": [{"choice": {"masks": ["01 0"]}, "of": [0.1, None]}], "about": "two  words\n"}
    (tmp_path / packed.TABLE).write_text(json.dumps(table, indent=2))
    packed.pack(tmp_path)
    written = (tmp_path / packed.TABLE).read_text()
    assert json.loads(written) == table
    assert len(written) < len(json.dumps(table))
