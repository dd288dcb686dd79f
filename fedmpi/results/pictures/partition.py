"""The picture of the partition: clients x classes, with bubbles for the numbers of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.pictures.figure import COLOURS, Sheet, inches, panels, run_names
from fedmpi.results.reader import Run

# Width of a bubble that fills its cell: points per inch of the panel, divided by the number of cells per row.
_LARGEST_BUBBLE = 60


def samples_by_class(run: Run) -> NDArray[np.int64]:
    """The number of training samples per client and class (or group of similar targets), [clients, classes].

    Raises:
        BadInput: the run has no such numbers, or all of them are 0.
    """
    counts = run.partition.get("label_counts", np.empty((0, 0), np.int64))
    if not counts.max(initial=0) > 0:
        raise BadInput(f"{run.path}: no samples per client and class")
    return counts


def draw(runs: Sequence[Run], sheet: Sheet, clients: int) -> None:
    """Draw the number of samples per client and class as bubbles, with one panel per run.

    The area of a bubble is proportional to the number of samples. All panels have the same scale.

    Args:
        runs: the runs.
        sheet: the file and its layout.
        clients: the number of clients to show; these are the first ones.

    Raises:
        BadInput: a run has no samples of clients, or the picture cannot be drawn or written (see `picture`).
    """
    counts = [samples_by_class(run)[:clients] for run in runs]
    most = max(max(int(each.max(initial=0)) for each in counts), 1)
    with panels(sheet, run_names(runs), 2.6, 2.4) as drawn:
        from matplotlib.ticker import MaxNLocator

        largest = _LARGEST_BUBBLE * inches(drawn[0])[0] / max(max(each.shape) for each in counts)
        scale = largest**2 / most
        for axes, run, each in zip(drawn, runs, counts, strict=True):
            client, of_class = np.nonzero(each)
            axes.scatter(client, of_class, scale * each[client, of_class], COLOURS[0], linewidths=0)
            groups = "Class" if run.task == "Classification" else "Group of similar targets"
            axes.set(xlabel="Client", ylabel=groups, xlim=(-0.7, len(each) - 0.3), ylim=(-0.7, each.shape[1] - 0.3))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(True)
            axes.set_axisbelow(True)
        sizes = sorted({-(-most // part) for part in (1, 4, 16)})
        bubbles = [drawn[0].scatter([], [], scale * size, COLOURS[0], linewidths=0) for size in sizes]
        drawn[0].figure.legend(bubbles, map(str, sizes), title="Samples", loc="outside right center")
