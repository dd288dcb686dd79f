"""The picture of a column over the rounds: one curve per setting, with a band for its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.common import described, main_metric
from fedmpi.results.groups import Group, grouped, names
from fedmpi.results.pictures.figure import COLOURS, Sheet, inches, picture, wrapped
from fedmpi.results.pictures.legend import add_legend
from fedmpi.results.reader import Run, traffic

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

X_LABELS = {
    "round": "Round",
    "seconds": "Wall-clock time (s)",
    "bytes": "Traffic of the clients, up and down (GB)",
    "virtual_seconds": "Virtual time (s)",
}
#: Used as the name of a column: the main metric of held-out clients while they fine-tune the final model.
HELD_OUT = "held_out"

_WIDTH, _ASPECT = 5.0, 0.6  # width in inches, and ratio of height to width
# There are 7 colours and 7 markers, which change together, and 4 dashes: 28 curves are all different.
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MARKED, _FEWEST = 8, 3  # markers of a curve: about 8, and at least 3 if the markers of many curves alternate
_BAND = 0.13  # opacity, so low that three overlapping bands can still be distinguished

Points = NDArray[np.float64]


def curve(run: Run, column: str, x: str) -> tuple[Points, Points]:
    """The points of a curve: the initial model at x = 0, then all rounds that have a value.

    Args:
        run: the run.
        column: a column of /rounds, or `HELD_OUT` for the mean over held-out clients of the main metric after each
            local epoch.
        x: the horizontal axis, a key of `X_LABELS`; ignored for `HELD_OUT`.

    Returns:
        x [n] and y [n], in the units of the axis labels, such as GB of traffic and percent of accuracy.

    Raises:
        BadInput: the run has no such column, no value in it yet, or no held-out clients.
    """
    if column == HELD_OUT:
        if run.main_metric not in run.held_out:
            raise BadInput(f"{run.path}: no held-out clients")
        means = run.held_out[run.main_metric].mean(axis=0)
        return np.arange(len(means), dtype=np.float64), run.described(run.main_column).scale * means
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
    return xs[known_values], ys[known_values] * run.described(column).scale


def band(group: Group, column: str, x: str) -> tuple[Points, Points, Points]:
    """x, mean and standard deviation of the curves of a group, [n] each.

    The standard deviation has the divisor n-1, and is 0 for a single run. If the runs have values at different x, as
    over seconds, they are interpolated linearly. The mean ends at the end of the shortest curve.

    Raises:
        BadInput: a run has no such curve, see `curve`.
    """
    curves = [curve(run, column, x) for run in group]
    first, last = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    grid = np.unique(np.concatenate([xs for xs, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    return grid, values.mean(axis=0), values.std(axis=0, ddof=1) if len(group) > 1 else np.zeros(len(grid))


def draw(runs: Sequence[Run], sheet: Sheet, column: str, x: str) -> None:
    """Draw one curve per setting.

    The curve is the mean over the seeds, and the band is mean ± standard deviation. Curves differ in colour, dashes
    and marker. Dashed curves are drawn above solid ones, so that curves with equal values remain visible. The legend
    is sorted by the last value of the curves, the highest first.

    Args:
        runs: the runs of all settings and seeds.
        sheet: the file and its layout.
        column, x: as for `curve`.

    Raises:
        BadInput: a run has no such curve (see `curve`), the files do not give the same unit for the column, or the
            picture cannot be drawn or written (see `picture`).
    """
    y_label = _y_label(runs, column)
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
        axes.set_xlabel(wrapped(x_label, 0.75 * width, "axes.labelsize"))
        figure.draw_without_rendering()  # `inches` needs the layout
        axes.set_ylabel(wrapped(y_label, inches(axes)[1], "axes.labelsize"))
        if len(groups) > 1:
            highest_first = sorted(ends, key=ends.__getitem__, reverse=True)
            add_legend(figure, axes, highest_first, grows=not sheet.height)


def _y_label(runs: Sequence[Run], column: str) -> str:
    if column != HELD_OUT:
        about = described(runs, column)
        return about.with_unit(about.label)
    main = main_metric(runs, "plot them one by one")
    return described(runs, f"test_{main}").with_unit(f"Held-out clients' {main.replace('_', ' ')}")


def _marked(points: int, number: int, count: int) -> tuple[int, int]:
    """The first point with a marker, and the step to the next; curves have their markers at different points.

    Args:
        points: number of points of the curve.
        number: number of the curve, from 0.
        count: number of curves.
    """
    step = max(points // _MARKED, min(count, points // _FEWEST), 1)
    return number * step // count, step
