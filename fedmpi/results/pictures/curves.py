"""How a number went: one curve for each setting, with a band for its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.groups import Group, grouped, names
from fedmpi.results.pictures.figure import COLOURS, Sheet, inches, picture, wrapped
from fedmpi.results.pictures.legend import add_legend
from fedmpi.results.reader import Run, traffic
from fedmpi.results.schema import label, scale

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

X_LABELS = {
    "round": "Round",
    "seconds": "Wall-clock time (s)",
    "bytes": "Traffic of the clients, up and down (GB)",
    "virtual_seconds": "Virtual time (s)",
}
#: In place of a column of /rounds: the accuracy of held-out clients while they fine-tune the final model.
HELD_OUT = "held_out"

_WIDTH, _ASPECT = 5.0, 0.6  # inches, and height over width
# As many of each as have no common divisor with the number of colours, or go with these: 28 curves all differ.
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MARKED, _FEWEST = 8, 3  # points of a curve that have a marker, about; and at least, where curves take turns
_BAND = 0.13  # opacity: where three lie on one another, each can still be seen

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


def draw(runs: Sequence[Run], sheet: Sheet, column: str, x: str) -> None:
    """Draw one curve for the runs of each setting.

    The band is mean ± standard deviation over the seeds. Curves differ in colour, dashes and marker, and those that
    are dashed lie above those that are not, so that equal curves can be seen. The legend has them in the order in
    which they end, the highest first.

    Raises:
        BadInput: as `picture` and `curve`.
    """
    groups = grouped(runs)
    width = sheet.width or _WIDTH
    with picture(sheet, width, _ASPECT * width) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        ends: dict[Line2D, float] = {}
        for k, (group, title) in enumerate(zip(groups, names(groups), strict=True)):
            xs, means, deviations = band(group, column, x)
            (line,) = axes.plot(
                xs,
                means,
                color=COLOURS[k % len(COLOURS)],
                linestyle=_DASHES[k % len(_DASHES)],
                marker=_MARKERS[k % len(_MARKERS)],
                markevery=_marked(len(xs), k, len(groups)),
                zorder=2 + k % len(_DASHES) / len(_DASHES),
                label=wrapped(title, 0.8 * width, "legend.fontsize"),
            )
            ends[line] = float(means[-1])
            if len(group) > 1:
                shade = axes.fill_between(xs, means - deviations, means + deviations, color=line.get_color())
                shade.set(alpha=_BAND, linewidth=0.4, zorder=1)
        is_held_out = column == HELD_OUT
        if is_held_out or x == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True)
        axes.margins(x=0.02)
        x_label = "Local epochs of a held-out client" if is_held_out else X_LABELS[x]
        y_label = "Held-out clients' accuracy (%)" if is_held_out else label(column)
        axes.set_xlabel(wrapped(x_label, 0.75 * width, "axes.labelsize"))
        figure.draw_without_rendering()  # for `inches`
        axes.set_ylabel(wrapped(y_label, inches(axes)[1], "axes.labelsize"))
        if len(groups) > 1:
            highest_first = sorted(ends, key=ends.__getitem__, reverse=True)
            add_legend(figure, axes, highest_first, grows=not sheet.height)


def _marked(points: int, number: int, count: int) -> tuple[int, int]:
    """The first point of a curve that has a marker, and the step to the next; curves have theirs at other points."""
    step = max(points // _MARKED, min(count, points // _FEWEST), 1)
    return number * step // count, step
