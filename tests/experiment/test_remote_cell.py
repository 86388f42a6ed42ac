"""What a cell takes to another machine and brings back; and what is said of clusters that cannot be used."""

import importlib.util
import json
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from layersift.config.recipe import read_recipe
from layersift.errors import LayersiftError
from layersift.experiment import ray_cluster, remote_cell
from layersift.experiment.cell import Job, run_cell
from layersift.experiment.grid import contents_of, open_grid
from layersift.experiment.remote_cell import Input, Order, accept, carry_out, inputs_of, pack, place_inputs, unpack
from layersift.progress import Reporter
from layersift.provenance import versions
from layersift.records.runs import Result, RunRecord
from variants import cell_of


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """Where another machine would keep what is sent to it."""
    place = tmp_path / "node"
    monkeypatch.setattr(remote_cell, "private_directory", lambda what: place / what)
    (place / "inputs").mkdir(parents=True)
    return place / "inputs"


def write_recipe(directory, model):
    """A recipe whose model and data are named from ``directory`` on."""
    shutil.copytree(model, directory / "model")
    for name in ("train", "test"):
        rows = [{"text": f"w{i % 7} w{i % 5}", "label": ["no", "yes"][i % 2]} for i in range(24)]
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (directory / "r.yaml").write_text(
        "model: model\ndata: train.jsonl\nevaluate: test.jsonl\noutput: out\ntrain: {epochs: 1, learning_rate: 0.01}\n"
    )
    return read_recipe(directory / "r.yaml", [])


@pytest.fixture(scope="module")
def begun(tmp_path_factory, bert_directory):
    """A grid, one of whose cells was trained here, with a run directory that is kept; and what it would send."""
    directory = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(directory)
        recipe = write_recipe(directory, bert_directory)
        job = Job(replace(cell_of("0011", 0), train=recipe.train), "last")
        with open_grid(recipe, "run") as output:
            run_cell(recipe, job, output, Reporter())
            inputs = inputs_of(recipe)
            order = Order(recipe, job, inputs, contents_of(output), None, 1, tuple(sys.argv))
            return directory, order, [one.pack() for one in inputs]


def test_a_cell_comes_to_the_same_on_a_machine_that_has_nothing(begun, tmp_path, apart, monkeypatch):
    """In a directory from which neither the model nor the data is to be seen, and with nothing at their places."""
    directory, order, contents = begun
    monkeypatch.chdir(tmp_path)
    lost = replace(order, inputs=tuple(replace(one, path=f"/nowhere/{one.given}") for one in order.inputs))
    delivery = carry_out(lost, contents.__getitem__)
    assert (delivery.error, delivery.trace) == (None, None)
    job, output = order.job, tmp_path / "out"
    assert accept(delivery, job, output, order.recipe.train) is None
    name = f"cells/{job.cell.file_name(order.recipe.train)}.json"
    here, there = Result.load(directory / "out" / name), Result.load(output / name)
    assert (there.metrics, there.outcomes, there.cell) == (here.metrics, here.outcomes, here.cell)
    weights = "variants/last/adapter_model.safetensors"
    assert (output / weights).read_bytes() == (directory / "out" / weights).read_bytes()
    kept, original = RunRecord.load(output / "variants/last"), RunRecord.load(directory / "out/variants/last")
    assert (kept.source, kept.data) == (original.source, original.data)
    assert kept.command == original.command
    written = "".join(p.read_text() for p in (output / "variants/last").iterdir() if p.suffix in (".json", ".md"))
    assert "/nowhere" not in written
    assert str(apart) not in written
    assert sorted(p.name for p in apart.glob("*/*")) == ["model", "test.jsonl", "train.jsonl"]


def test_a_run_that_was_not_judged_makes_room_and_another_cells_is_kept(begun, tmp_path):
    directory, order, _ = begun
    output, job = tmp_path / "out", order.job
    shutil.copytree(directory / "out", output)
    delivery = remote_cell.Delivery(result=b"{}", run={"new": b""})
    assert "holds layers 0011" in accept(delivery, replace(job, cell=cell_of("1100", 0)), output, order.recipe.train)
    assert (output / "variants/last/adapter_model.safetensors").exists()
    assert accept(delivery, job, output, order.recipe.train) is None
    assert [p.name for p in (output / "variants/last").iterdir()] == ["new"]


@pytest.mark.parametrize("what", ["model", "train", "test"])
def test_other_contents_are_refused(begun, apart, what):
    _, order, contents = begun
    delivery = carry_out(replace(order, contents={**order.contents, what: "another"}), contents.__getitem__)
    assert delivery.error.startswith(f"{socket.gethostname()} has other contents ({what})")


def test_an_unforeseen_error_is_told_with_its_traceback(begun, apart, tmp_path, monkeypatch):
    _, order, contents = begun

    def broken(*_):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(remote_cell, "run_cell", broken)
    said = accept(carry_out(order, contents.__getitem__), order.job, tmp_path, order.recipe.train)
    assert said.startswith("RuntimeError: device-side assert (see ")
    assert "in broken" in Path(said.partition("see ")[2].rstrip(")")).read_text()


def test_what_is_there_with_the_same_content_is_used_where_it_lies(tmp_path, apart):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "two").write_text("2")
    one = Input.of(str(tmp_path / "a"))
    content = one.pack()
    assert content == {"one": b"1", "b/two": b"2"}
    assert place_inputs([one], None) == {one.given: one.given}
    (tmp_path / "a" / "one").write_text("3")  # of the same size
    placed = Path(place_inputs([one], lambda number: content)[one.given])
    assert placed.is_relative_to(apart)
    assert (placed / "one").read_text() == "1"
    assert place_inputs([one], None) == {one.given: str(placed)}  # it is not sent twice


def test_a_file_is_packed_by_no_name(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}")
    unpack(pack(tmp_path / "x.jsonl"), tmp_path / "there" / "x.jsonl")
    assert (tmp_path / "there" / "x.jsonl").read_text() == "{}"


def test_what_is_too_large_to_be_sent_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_cell, "SENT_AT_MOST", 3)
    (tmp_path / "rows").write_text("four")
    one = Input.of(str(tmp_path / "rows"))
    assert place_inputs([one], None) == {one.given: one.path}
    (tmp_path / "rows").unlink()
    with pytest.raises(LayersiftError, match=f"has no {one.path}.*id of a model or data on the Hub"):
        remote_cell.require_inputs([one])


def test_names_come_back_where_paths_are_meant():
    places = {"train.jsonl": "/x/train.jsonl", "m": "/x/m"}
    said = '"/x/train.jsonl", /x/m/config.json, /x/model, /x/m.bin, /y/x/m'
    assert remote_cell._as_named(said, places) == '"train.jsonl", m/config.json, /x/model, /x/m.bin, /y/x/m'


def test_other_versions_are_refused():
    remote_cell.require_versions(versions())
    with pytest.raises(LayersiftError, match=r"has torch .* instead of 1\.0; install the same versions there"):
        remote_cell.require_versions({**versions(), "torch": "1.0"})


def test_ray_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LayersiftError, match=r"pip install 'layersift\[ray\]'"):
        ray_cluster.RayCluster()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_does_not_answer_is_told_soon(scheme, monkeypatch):
    """Nothing listens at the one, and at the other something else than Ray."""
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "ANSWER_WITHIN", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{listening.getsockname()[1]}"
        if scheme:
            listening.listen()
        with pytest.raises(LayersiftError, match=rf"{address}: no Ray cluster answers within .*ray start --head"):
            ray_cluster.cluster_named(address, None, None)


def test_of_a_node_without_layersift_it_is_said_what_to_install():
    error = RuntimeError("The remote function failed to import on the worker: No module named 'layersift'")
    assert "pip install layersift==" in ray_cluster._missing_module(error)
    assert ray_cluster._missing_module(RuntimeError("other")) is None
