"""The picture of the confusion matrix of the last evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.groups import grouped, names
from fedmpi.results.pictures.figure import Sheet, inches, panels
from fedmpi.results.reader import Run

#: The cells contain numbers if there are at most this many classes.
NUMBERED = 12


def confusion(run: Run) -> NDArray[np.float64]:
    """The confusion matrix [true classes, predicted classes] in percent of the samples of each true class.

    Raises:
        BadInput: the run has no evaluation yet, or no classes.
    """
    if "counts" not in run.confusion:
        raise BadInput(f"{run.path}: no confusion matrix yet")
    counts = run.confusion["counts"].astype(np.float64)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def draw(runs: Sequence[Run], sheet: Sheet) -> None:
    """Draw the confusion matrix, averaged over the seeds, with one panel per setting.

    Raises:
        BadInput: a run has no evaluation yet, or the picture cannot be drawn or written (see `picture`).
    """
    groups = grouped(runs)
    with panels(sheet, names(groups), 3.2, 3.0) as drawn:
        from matplotlib.ticker import MaxNLocator

        for axes, group in zip(drawn, groups, strict=True):
            shares = np.mean([confusion(run) for run in group], axis=0)
            image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(integer=True))
            axes.set(xlabel="Predicted class", ylabel="True class")
            if len(shares) <= NUMBERED:
                size = min(6, 72 * inches(axes)[0] / len(shares) / 2)  # three digits fit into the cell
                for (row, column), share in np.ndenumerate(shares):
                    colour = "black" if share > 50 else "white"
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color=colour)
        drawn[0].figure.colorbar(image, ax=drawn, label="Share of the true class (%)")
