"""Worker processes that come to grief. Here, since a new process finds what it is to run by its module's name."""

import os

import torch

from layersift.experiment import grid
from layersift.experiment.cell import result_path
from layersift.records.runs import Result

REAL_WORK = grid._work


def deadly(connection, recipe, output, threads):
    """A worker that the system kills in the middle of one cell."""
    while True:
        cell = connection.recv().cell
        if cell.seed == 1:
            os._exit(9)
        Result(cell, {"accuracy": 0.5}, 2, (0.0, 1.0)).save(result_path(output, cell, recipe.train))
        connection.send(("done", (None, True)))


def stuck(recipe, job, output, reporter):
    """A cell after which its process is of no more use, as after some errors of a GPU."""
    if job.cell.seed == 0:
        torch.ones = None
        raise RuntimeError("device-side assert triggered")
    torch.ones(1)
    Result(job.cell, {"accuracy": 0.5}, 2, (0.0, 1.0)).save(result_path(output, job.cell, recipe.train))


def stuck_work(connection, *arguments):
    grid.run_cell = stuck
    REAL_WORK(connection, *arguments)
