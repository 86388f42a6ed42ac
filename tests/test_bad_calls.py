"""Every call of the tables ends in a `LayersiftError` of one line, and leaves the place as it was."""

import pytest

from bad import place as places
from bad.functions import CALLS, at_hand
from layersift.errors import LayersiftError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    places.make(directory)
    return directory, places.contents(directory)


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in CALLS])
def test_a_bad_call_gets_one_line(bad, place, monkeypatch):
    directory, before = place
    monkeypatch.chdir(directory)
    tools = at_hand()
    with pytest.raises(LayersiftError) as error:
        bad.call(tools)
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < places.LONGEST
    for name in bad.names:
        assert name.lower() in said.lower()
    assert places.contents(directory) == before
