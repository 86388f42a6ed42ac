"""Real Ray clusters of two nodes on this machine, begun in a directory that holds no model and no data."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from layersift.config.recipe import read_recipe
from layersift.experiment.compare import compare
from layersift.experiment.run import run

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes of one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    utils = pytest.importorskip("ray.cluster_utils")
    (tmp_path / "node").mkdir()
    monkeypatch.chdir(tmp_path / "node")
    head = {**NODE, "include_dashboard": False, "_system_config": {"worker_niceness": 0}}  # by itself it gives way
    started = utils.Cluster(initialize_head=True, head_node_args=head)
    started.second = started.add_node(**NODE)
    monkeypatch.chdir(tmp_path)
    yield started
    started.shutdown()


@pytest.fixture
def recipe(tmp_path, bert_directory):
    for name, count in (("train", 96), ("test", 48)):
        rows = [{"text": f"w{i % 11} w{i % 3} w{i % 7}", "label": ["no", "yes"][i % 3 > 1]} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "model": bert_directory,
        "data": "train.jsonl",
        "evaluate": "test.jsonl",
        "output": "out",
        "variants": ["all", "last", "base"],
        "select": {"max_samples": 32},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
        "compare": {"criteria": ["last", "alternate"], "seeds": 2, "random": 1, "strategies": []},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "r.yaml"


def start(*arguments):
    command = [sys.executable, "-m", "layersift", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def cells_in(output):
    return {path.name: path for path in Path(output, "cells").glob("*.json")}


def wait_for(count, output, process):
    while process.poll() is None and len(cells_in(output)) < count:
        time.sleep(0.05)


def scores(comparison):
    return {(row.choice.name, row.choice.budget): (row.score, row.from_all) for row in comparison.rows}


def test_a_comparison_that_loses_a_node_comes_to_the_figures_of_one_machine(cluster, recipe, tmp_path, monkeypatch):
    going = start("compare", recipe, "--on", cluster.address, "-o", "far", "--json")
    wait_for(2, "far", going)
    assert going.poll() is None, going.communicate()[1]
    cluster.remove_node(cluster.second, allow_graceful=False)
    _, err = going.communicate()
    assert going.returncode == 0, err
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    near, far = (read_recipe(recipe, [], name) for name in ("near", "far"))
    expected, found = compare(near, jobs=1), compare(far, jobs=1)  # the latter reads what the cluster has come to
    assert scores(found) == scores(expected)
    assert set(cells_in("far")) == set(cells_in("near"))
    assert not list(Path("far").rglob("*.error.txt"))


def test_a_driver_that_is_killed_loses_nothing_and_a_second_start_goes_on(cluster, recipe, tmp_path):
    going = start("run", recipe, "--on", cluster.address, "-o", "out")
    wait_for(1, "out", going)
    going.send_signal(signal.SIGKILL)
    going.communicate()
    done = {name: path.stat().st_mtime_ns for name, path in cells_in("out").items()}
    assert done
    again = start("run", recipe, "--on", cluster.address, "-o", "out")
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert {name: path.stat().st_mtime_ns for name, path in cells_in("out").items() if name in done} == done
    found = run(read_recipe(recipe, [], "out"))
    assert set(found.variants) == {"all", "last", "base"}
    assert Path("out/variants/last/adapter_model.safetensors").is_file()


@pytest.fixture
def started(monkeypatch):
    """Starts `ray start` lines of docs/how-to/several-machines.md here, each in a process that ends with the test.

    The head has no CPU for cells, so that they can run on the second node alone.
    """
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it depends on whether this user has had a token made
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "several-machines.md").read_text()
    lines = [line.split("#")[0].split() for line in page.splitlines() if line.startswith("ray start ")]
    place = tempfile.mkdtemp(dir="/tmp")  # sockets have short names
    going = []

    def begin(number, port, *more):
        words = [word.replace("HOST:6379", f"127.0.0.1:{port}").replace("6379", str(port)) for word in lines[number]]
        own = [*words[1:], "--block", f"--num-cpus={number}", f"--object-store-memory={200 << 20}"]
        own += ["--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        own += ["--include-dashboard=false", f"--temp-dir={place}"] if number == 0 else []
        command = [str(Path(sys.executable).with_name("ray")), *own, *more]
        going.append(subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, cwd=place))
        return going[-1]

    yield begin
    for process in reversed(going):
        process.send_signal(signal.SIGTERM)  # it ends what it has started
        process.wait(90)
    shutil.rmtree(place, ignore_errors=True)


def living_nodes(address):
    """How many nodes of a cluster are alive, asked in a process of its own; 0 where no cluster answers."""
    asked = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(sum(n['Alive'] for n in ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", asked, address], capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def wait_for_nodes(count, address, process):
    for _ in range(30):
        assert process.poll() is None, f"`ray start` has ended with {process.returncode}"
        if living_nodes(address) == count:
            return
        time.sleep(0.5)
    pytest.fail(f"no {count} nodes at {address}")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_answer(port, process):
    for _ in range(120):
        assert process.poll() is None, f"`ray start` has ended with {process.returncode}"
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"nothing answers at port {port}")


def test_a_client_trains_on_a_cluster_of_which_it_is_no_node(started, recipe, tmp_path, monkeypatch):
    """The address ray://HOST:PORT, which `--on` and RAY_ADDRESS take."""
    monkeypatch.chdir(tmp_path)
    port, clients = free_port(), free_port()
    head = started(0, port, "--num-cpus=1", f"--ray-client-server-port={clients}")
    wait_for_answer(clients, head)
    wait_for_nodes(1, f"127.0.0.1:{port}", head)
    going = start("run", recipe, "--on", f"ray://127.0.0.1:{clients}", "-o", "out")
    _, err = going.communicate()
    assert going.returncode == 0, err
    assert Path("out/variants/last/adapter_model.safetensors").is_file()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    near, far = (run(read_recipe(recipe, [], name)) for name in ("near", "out"))
    assert {row.choice.name: row.score for row in far.rows} == {row.choice.name: row.score for row in near.rows}


def test_the_page_goes_from_one_machine_to_two(started, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = started(0, port)
    wait_for_answer(port, head)
    wait_for_nodes(1, address, head)
    second = started(1, port)
    wait_for_nodes(2, address, second)
    monkeypatch.setenv("RAY_ADDRESS", address)
    going = start("run", recipe, "--on", "ray", "-o", "out")
    _, err = going.communicate()
    assert going.returncode == 0, err
    assert second.poll() is None
    assert Path("out/variants/last/adapter_model.safetensors").is_file()


def test_an_address_that_does_not_answer_is_told_in_one_line(recipe, tmp_path):
    going = start("run", recipe, "--on", "127.0.0.1:9", "-o", "out")
    began = time.monotonic()
    _, err = going.communicate()
    assert going.returncode == 2
    assert "127.0.0.1:9: no Ray cluster answers" in err
    assert time.monotonic() - began < 30
    assert not Path("out").exists()
