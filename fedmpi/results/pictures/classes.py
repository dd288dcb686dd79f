"""The picture of the accuracy per class over the rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.groups import grouped, names
from fedmpi.results.pictures.figure import Sheet, panels
from fedmpi.results.reader import Run


def class_accuracies(run: Run) -> NDArray[np.float64]:
    """The accuracy per class at each evaluation, [evaluations, classes], in percent.

    Raises:
        BadInput: the run has no evaluation yet, or no classes.
    """
    if not len(run.evaluation.get("per_class_accuracy", ())):
        raise BadInput(f"{run.path}: no accuracies per class yet")
    return 100 * run.evaluation["per_class_accuracy"]


def draw(runs: Sequence[Run], sheet: Sheet) -> None:
    """Draw the accuracies per class as an image, rounds x classes, with one panel per setting.

    The values are means over the seeds, up to the last evaluation that all seeds have reached.

    Raises:
        BadInput: a run has no evaluation yet, or the picture cannot be drawn or written (see `picture`).
    """
    groups = grouped(runs)
    with panels(sheet, names(groups), 2.6, 2.2) as drawn:
        from matplotlib.ticker import MaxNLocator

        for axes, group in zip(drawn, groups, strict=True):
            found = [class_accuracies(run) for run in group]
            count = min(map(len, found))
            mean = np.mean([each[:count] for each in found], axis=0)
            image = axes.imshow(mean.T, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=100)
            shown = range(0, count, -(-count // 5))
            axes.set_xticks(shown, [str(group[0].evaluation["round"][number]) for number in shown])
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set(xlabel="Round", ylabel="Class")
        drawn[0].figure.colorbar(image, ax=drawn, label="Accuracy per class (%)")
