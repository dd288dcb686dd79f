"""The picture of the distribution of the main metric over clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.common import described, main_metric
from fedmpi.results.groups import grouped, names
from fedmpi.results.pictures.figure import COLOURS, Sheet, picture, wrapped
from fedmpi.results.reader import Run


def client_values(run: Run) -> NDArray[np.float64]:
    """The main metric of each client on its own test samples at the last evaluation, [n], in its unit.

    Clients without test samples are left out.

    Raises:
        BadInput: the run has no values of clients, or none yet.
    """
    column = f"client_{run.main_metric}"
    values = run.evaluation.get(column, np.empty((0, 0)))
    if not values.size:
        raise BadInput(f"{run.path}: no {column} yet")
    last = values[-1]
    return run.described(run.main_column).scale * last[~np.isnan(last)]


def draw(runs: Sequence[Run], sheet: Sheet) -> None:
    """Draw the clients' values of the main metric as a box plot, with one box per setting.

    The box shows the quartiles. The whiskers end at the 5th and the 95th percentile. Each dot is one client of one
    seed.

    Raises:
        BadInput: a run has no values of clients, the runs have several main metrics, or the picture cannot be drawn
            or written (see `picture`).
    """
    main = main_metric(runs, "plot them one by one")
    about = described(runs, f"test_{main}")
    groups = grouped(runs)
    found = [np.concatenate([client_values(run) for run in group]) for group in groups]
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
        axes.set_xlabel(about.with_unit(f"{main.replace('_', ' ').capitalize()} per client"))
        axes.grid(axis="x")
