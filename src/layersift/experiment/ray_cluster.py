"""Trainings as tasks of a Ray cluster. Ray is imported only where it was asked for."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layersift._version import __version__
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError, one_line, wrap_library_errors
from layersift.experiment.cell import SELECTION, Job
from layersift.experiment.grid import contents_of
from layersift.experiment.remote_cell import (
    Delivery,
    Files,
    Input,
    Order,
    accept,
    carry_out,
    inputs_of,
    require_inputs,
    require_versions,
)
from layersift.processes import count_named
from layersift.progress import Reporter
from layersift.provenance import versions

RAY, SCHEME = "ray", "ray://"
ANSWER_WITHIN = 8  # seconds, for the address
NODES_WITHIN = 600  # seconds, for each node to import what is needed and to look at its files
TRIES_AGAIN = 3  # of a cell whose node or process died
OF_TOKENS = "or set RAY_AUTH_MODE=token if it asks for a token"  # which Ray 2.60 does not find out where it joins
BY_RAY = ("auto", "local", "")  # addresses that Ray resolves itself


class RayCluster:
    """A Ray cluster: RAY_ADDRESS's, one that runs here, or else one that is begun on this machine.

    Each cell is one task. What a dead node was training is trained again on another; what fails otherwise fails alone.

    Args:
        address: ``ray://HOST:PORT`` or ``HOST:PORT`` of a cluster; None: as Ray finds it.
        cpus: cores of a node for each training, and its threads. [OMP_NUM_THREADS, or 1]
        gpus: GPUs of a node for each training; a fraction shares one. [1 where the cluster has any]

    Raises:
        LayersiftError: Ray is not installed, or the address does not answer.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None, gpus: float | None = None) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or ""
        self.cpus = cpus or count_named("OMP_NUM_THREADS") or 1
        self.gpus = gpus
        self._sent: dict[Input, Any] = {}  # what has been put into the cluster's memory
        self._known: set[tuple[str, tuple[Input, ...]]] = set()  # nodes that have what some inputs need
        _connect(self.address)

    def run(
        self, recipe: Recipe, jobs: Sequence[Job], output: Path, reporter: Reporter
    ) -> Generator[tuple[Job, str | None], None, None]:
        """Carry out cells; see :class:`layersift.experiment.cell.Runner`."""
        import ray

        inputs = inputs_of(recipe)
        selection = output / SELECTION
        kept = selection.read_bytes() if selection.exists() else None
        with self._told():
            needs = self._needs(recipe)
            self._require_nodes(inputs, needs)
            sent = [self._send(one) for one in inputs]
            task = ray.remote(_carry_out).options(max_retries=TRIES_AGAIN, name="layersift cell", **needs)
            contents = contents_of(output)
            waiting = {
                task.remote(Order(recipe, job, inputs, contents, kept, self.cpus, tuple(sys.argv)), sent): job
                for job in jobs
            }
        try:
            while waiting:
                with self._told():
                    (done, *_), _ = ray.wait(list(waiting))
                    delivery = _received(done)
                job = waiting.pop(done)
                yield job, accept(delivery, job, output, recipe.train)
        finally:
            with suppress(Exception):  # the cluster may be gone
                for reference in waiting:
                    ray.cancel(reference, force=True)

    def _told(self) -> Any:
        """Whatever Ray says of a cluster that is gone becomes one line."""
        where = f"the Ray cluster{f' at {self.address}' if self.address else ''}"
        return wrap_library_errors(
            LayersiftError, f"{where} cannot be used any more", "what is finished is kept; the same command goes on"
        )

    def _needs(self, recipe: Recipe) -> dict[str, float]:
        """What each training takes of a node."""
        import ray

        gpus = self.gpus
        if gpus is None:
            on_gpu = recipe.model.device is None or not recipe.model.device.startswith("cpu")
            gpus = 1.0 if on_gpu and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
        return {"num_cpus": self.cpus, "num_gpus": gpus}

    def _require_nodes(self, inputs: tuple[Input, ...], needs: Mapping[str, float]) -> None:
        """Refuse a cluster of which no node is large enough, or a node lacks what the cells need.

        Raises:
            LayersiftError: that.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [node for node in ray.nodes() if node["Alive"]]
        cpus, gpus = needs["num_cpus"], needs["num_gpus"]
        able = [n for n in alive if n["Resources"].get("CPU", 0) >= cpus and n["Resources"].get("GPU", 0) >= gpus]
        if not able:
            raise LayersiftError(
                f"none of the cluster's {len(alive)} nodes has {cpus} CPUs and {gpus:g} GPUs for each training; give "
                "fewer --threads or --gpus, or start a larger node first"
            )
        look = ray.remote(_look_at_node)
        asked = {}
        for node in able:
            if (node["NodeID"], inputs) not in self._known:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = look.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
                asked[options.remote(inputs, versions())] = node
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODES_WITHIN) if asked else ([], [])
        for reference in silent:
            raise LayersiftError(
                f"{_name_of(asked[reference])} did not answer within {NODES_WITHIN} s; see `ray status`"
            )
        for reference in answered:
            if (fault := _fault_of(reference)) is not None:
                raise LayersiftError(f"node {_name_of(asked[reference])}: {fault}")
            self._known.add((asked[reference]["NodeID"], inputs))

    def _send(self, one: Input) -> Any:
        """A reference to the content of an input, put into the cluster's memory once; None where it is too large."""
        import ray

        if one.digest is not None and one not in self._sent:
            self._sent[one] = ray.put(one.pack())
        return self._sent.get(one)


def cluster_named(on: str, cpus: int | None, gpus: float | None) -> RayCluster:
    """The cluster that ``--on`` names.

    Raises:
        LayersiftError: another word than ``ray`` or an address; see :class:`RayCluster`.
    """
    if on != RAY and not re.fullmatch(rf"({SCHEME})?[^/\s:]+:\d+", on):
        raise LayersiftError(f"--on {on}: expected ray, ray://HOST:PORT or HOST:PORT")
    return RayCluster(None if on == RAY else on, cpus, gpus)


def _connect(address: str) -> None:
    """Join the cluster at an address, for the rest of this process.

    Raises:
        LayersiftError: Ray is not installed, or nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise LayersiftError("--on ray needs the package ray: pip install 'layersift[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    remedy = "give the address of a running cluster (`ray status`), or start one: ray start --head"
    if address not in BY_RAY:
        _require_answer(address, remedy)
        remedy += f", {OF_TOKENS}"
    with wrap_library_errors(LayersiftError, f"no Ray cluster at {address or 'this machine'}", remedy):
        options = {} if address else {"include_dashboard": False}
        ray.init(address or None, log_to_driver=False, logging_level="ERROR", **options)


def _require_answer(address: str, remedy: str) -> None:
    """Refuse an address at which no server answers: Ray itself would try for minutes.

    Raises:
        LayersiftError: that.
    """
    import grpc

    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return
    channel = grpc.insecure_channel(address.removeprefix(SCHEME), options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_WITHIN)
    except grpc.FutureTimeoutError:
        raise LayersiftError(f"{address}: no Ray cluster answers within {ANSWER_WITHIN} s; {remedy}") from None
    finally:
        channel.close()


def _name_of(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _look_at_node(inputs: Sequence[Input], wanted: Mapping[str, str]) -> str | None:
    """On a node: what it lacks, or None."""
    try:
        require_versions(wanted)
        require_inputs(inputs)
    except LayersiftError as error:
        return str(error)
    return None


def _fault_of(reference: Any) -> str | None:
    """What a node lacks; of one that has died meanwhile nothing."""
    import ray

    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
        return None
    except (ray.exceptions.RayError, RuntimeError) as error:
        return _missing_module(error) or one_line(error)


def _missing_module(error: Exception) -> str | None:
    """Which package a node lacks, where that is why it could not begin."""
    found = re.search(r"No module named '(\w+)", str(error))
    if found is None:
        return None
    what = f"layersift=={__version__}" if found[1] == "layersift" else found[1]
    return f"the package {found[1]} is not installed there; pip install {what}, for the Python that Ray runs by"


def _carry_out(order: Order, sent: Sequence[Any]) -> Delivery:
    """On a node: a cell. What it needs is fetched only where the node lacks it."""
    import ray

    def fetch(number: int) -> Files:
        return ray.get(sent[number])  # type: ignore[no-any-return]

    return carry_out(order, fetch)


def _received(reference: Any) -> Delivery:
    """What a cell gave; of one whose process or node died again and again, that."""
    import ray

    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayError as error:
        return Delivery(_missing_module(error) or f"{type(error).__name__}: {one_line(error)}")
