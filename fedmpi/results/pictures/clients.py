"""The picture of the distribution of the clients' accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.groups import grouped, names
from fedmpi.results.pictures.figure import COLOURS, Sheet, picture, wrapped
from fedmpi.results.reader import Run


def client_accuracies(run: Run) -> NDArray[np.float64]:
    """The accuracy of each client on its own test samples at the last evaluation, [n], in percent.

    Clients without test samples are left out.

    Raises:
        BadInput: the run has no accuracies of clients, or none yet.
    """
    accuracy = run.evaluation.get("client_accuracy", np.empty((0, 0)))
    if not accuracy.size:
        raise BadInput(f"{run.path}: no accuracies of clients yet")
    last = accuracy[-1]
    return 100 * last[~np.isnan(last)]


def draw(runs: Sequence[Run], sheet: Sheet) -> None:
    """Draw the clients' accuracies as a box plot, with one box per setting.

    The box shows the quartiles. The whiskers end at the 5th and the 95th percentile. Each dot is one client of one
    seed.

    Raises:
        BadInput: a run has no accuracies of clients, or the picture cannot be drawn or written (see `picture`).
    """
    groups = grouped(runs)
    found = [np.concatenate([client_accuracies(run) for run in group]) for group in groups]
    titles = names(groups)
    width = sheet.width or 3.6 + max(map(len, titles)) / 14
    with picture(sheet, width, 1.0 + 0.32 * len(groups)) as figure:
        axes = figure.subplots()
        places = np.arange(len(groups))
        for place, values in zip(places, found, strict=True):
            height = np.random.default_rng(0).uniform(-0.28, 0.28, len(values))
            axes.plot(values, place + height, ".", color=COLOURS[0], alpha=0.35, markersize=3, markeredgewidth=0)
        axes.boxplot(
            found,
            positions=places,
            orientation="horizontal",
            widths=0.6,
            whis=(5, 95),
            showfliers=False,
            medianprops={"color": COLOURS[1], "linewidth": 1.6},
        )
        axes.set_yticks(places, [wrapped(title, 0.4 * width, "ytick.labelsize") for title in titles])
        axes.invert_yaxis()
        axes.set_xlabel("Accuracy per client (%)")
        axes.grid(axis="x")
