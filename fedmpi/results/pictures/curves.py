"""How a number went: one curve for each setting, with a band for its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.groups import Group, grouped, names
from fedmpi.results.pictures.figure import COLOURS, DASHES, legend, picture
from fedmpi.results.reader import Run, traffic
from fedmpi.results.schema import label, scale

X_LABELS = {
    "round": "Round",
    "seconds": "Wall time (s)",
    "bytes": "Clients' traffic, both ways (GB)",
    "virtual_seconds": "Virtual time (s)",
}
#: In place of a column of /rounds: the accuracy of held-out clients while they fine-tune the final model.
HELD_OUT = "held_out"

_WIDTH = 5.0  # inches
_MARKED = 25  # points of a curve that are marked

Points = NDArray[np.float64]


def curve(run: Run, column: str, x: str) -> tuple[Points, Points]:
    """The points [n] of a column of /rounds: the initial model at x = 0, then the rounds that have a value.

    Of held-out clients, their mean accuracy after each local epoch, whatever x is.

    Raises:
        BadInput: the run has no such column, or no value in it yet; or no held-out clients.
    """
    if column == HELD_OUT:
        if not run.held_out:
            raise BadInput(f"{run.path}: no held-out clients")
        accuracy = run.held_out["accuracy"].mean(axis=0)
        return np.arange(len(accuracy), dtype=np.float64), 100 * accuracy
    for needed in (column, *({x} & {"virtual_seconds"})):
        if needed not in run.rounds:
            known = ", ".join(run.rounds) or "no rounds yet"
            raise BadInput(f"{run.path}: no column {needed!r} in its rounds ({known})")
    reached = {
        "round": lambda: run.rounds["round"],
        "seconds": lambda: np.cumsum(run.rounds["seconds"]),
        "virtual_seconds": lambda: np.cumsum(run.rounds["virtual_seconds"]),
        "bytes": lambda: np.cumsum(traffic(run)),
    }[x]()
    xs = np.concatenate([[0.0], reached])
    ys = np.concatenate([[run.initial.get(column, np.nan)], run.rounds[column]])
    known_values = ~np.isnan(ys)
    if not known_values.any():
        raise BadInput(f"{run.path}: column {column!r} has no value yet")
    return xs[known_values], ys[known_values] * scale(column)


def band(group: Group, column: str, x: str) -> tuple[Points, Points, Points]:
    """x, mean and standard deviation (with n-1; 0 of one run) of the curves of some runs, [n] each.

    Where their points lie apart, as over seconds, curves are straight between points. They end where the first run
    ends.
    """
    curves = [curve(run, column, x) for run in group]
    first, last = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    grid = np.unique(np.concatenate([xs for xs, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    return grid, values.mean(axis=0), values.std(axis=0, ddof=1) if len(group) > 1 else np.zeros(len(grid))


def draw(runs: Sequence[Run], output: Path, column: str, x: str) -> None:
    """Draw one curve for the runs of each setting into `output`, whose suffix tells the format.

    The band is mean ± standard deviation over the seeds.

    Raises:
        BadInput: as `picture` and `curve`.
    """
    groups = grouped(runs)
    titles = names(groups)
    columns, height = legend(titles, _WIDTH)
    with picture(output, _WIDTH, 3.0 + height) as figure:
        axes = figure.subplots()
        styles = cycle((dash, colour) for dash in DASHES for colour in COLOURS)
        for group, title, (dash, colour) in zip(groups, titles, styles, strict=False):
            xs, means, deviations = band(group, column, x)
            is_measured = all(len(curve(run, column, x)[0]) == len(xs) for run in group)  # not put together
            marker = "o" if len(xs) <= _MARKED and is_measured else None
            axes.plot(xs, means, dash, color=colour, marker=marker, markersize=3, linewidth=1.4, label=title)
            if len(group) > 1:
                axes.fill_between(xs, means - deviations, means + deviations, color=colour, alpha=0.18, linewidth=0)
        is_held_out = column == HELD_OUT
        axes.set_xlabel("Local epochs of a held-out client" if is_held_out else X_LABELS[x])
        axes.set_ylabel("Held-out clients' accuracy (%)" if is_held_out else label(column))
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.margins(x=0.02)
        if len(groups) > 1:
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
