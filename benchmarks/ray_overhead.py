"""What a training takes beside itself where Ray carries it out, against a worker process, and this process alone.

    OMP_NUM_THREADS=1 python benchmarks/ray_overhead.py [--cells 20] [--address HOST:PORT]

The trainings are those of a recipe's smoke run: a model of some thousand parameters, two dozen rows. One is carried out
at a time. Needs `pip install 'layersift[ray]'`. Results: benchmarks/results/ray_overhead.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from layersift.config.recipe import Recipe, find_recipe, read_recipe
from layersift.experiment.cell import CELLS, Job, Runner
from layersift.experiment.choices import Choice
from layersift.experiment.grid import Processes, SharedTrainings, open_grid
from layersift.experiment.prepare import checked
from layersift.experiment.ray_cluster import RayCluster
from layersift.experiment.smoke import shrink
from layersift.files import write_json
from layersift.progress import Reporter
from layersift.provenance import machine, versions

RESULT = Path(__file__).parent / "results" / "ray_overhead.json"
RECIPE = "glue/roberta-base/sst2"


def smoke_recipe(place: Path) -> Recipe:
    """A recipe whose model and rows are as small as can be, in a directory."""
    return shrink(read_recipe(find_recipe(RECIPE), []), place)


def seconds_of(start: Callable[[], Runner], recipe: Recipe, output: Path, count: int) -> dict[str, Any]:
    """Until the first training is done, what the runner's own start takes included; and of each that follows."""
    recipe, layers, prepared = checked(replace(recipe, output=str(output)), Reporter())
    cells = Choice.of("all", 0, ["1" * layers], recipe.train).cells(range(count))
    begun, times = time.perf_counter(), []
    with open_grid(recipe, "run", prepared):
        (output / CELLS).mkdir()
        for _, failure in start().run(recipe, [Job(cell) for cell in cells], output, Reporter()):
            if failure is not None:
                raise SystemExit(failure)
            times.append(time.perf_counter())
    following = [after - before for before, after in itertools.pairwise(times)]
    return {
        "first": round(times[0] - begun, 3),
        "each that follows": {
            "median": round(statistics.median(following), 3),
            "least": round(min(following), 3),
            "most": round(max(following), 3),
        },
    }


def on_ray(address: str | None) -> Runner:
    """A cluster that has one CPU for trainings; or one that runs already."""
    if address is None:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return RayCluster(address, cpus=1, gpus=0)


def main() -> None:
    """All three ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--address", help="of a running cluster; by default one is started here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Callable[[], Runner]] = {
        "in this process": SharedTrainings,
        "a worker process": lambda: Processes(1),
        "Ray": lambda: on_ray(arguments.address),
    }
    with tempfile.TemporaryDirectory() as name:
        recipe = smoke_recipe(Path(name) / "inputs")
        seconds = {
            way: seconds_of(start, recipe, Path(name) / f"out-{number}", arguments.cells)
            for number, (way, start) in enumerate(ways.items())
        }
    print(json.dumps(seconds, indent=2))
    write_json(
        RESULT,
        {
            "seconds": seconds,
            "trainings": arguments.cells,
            "recipe": f"{RECIPE}, its smoke run",
            "machine": machine(),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
