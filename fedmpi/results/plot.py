"""Curves and partitions of one or many runs, as PNG, PDF or SVG that can go into a paper as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run
from fedmpi.results.schema import ROUND_LABELS
from fedmpi.results.settings import differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart, without the pale yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
# Area in square points of a bubble that fills its cell, times the square of how many cells there are in a row.
_LARGEST_BUBBLE = 18_000
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
}

X_LABELS = {
    "round": "Round",
    "seconds": "Wall time (s)",
    "bytes": "Clients' traffic, both ways (GB)",
    "virtual_seconds": "Virtual time (s)",
}
#: In place of a column of /rounds: what newcomers make of the model, epoch by epoch.
NEWCOMERS = "newcomers"
SUFFIXES = (".png", ".pdf", ".svg")


def curve(run: Run, column: str, x: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points [n] of a column of /rounds: the initial model at x = 0, then the rounds that have a value.

    Of newcomers, their mean accuracy after each local epoch, whatever x is.

    Raises:
        BadInput: the run has no such column, or no value in it yet; or no newcomers.
    """
    if column == NEWCOMERS:
        if not run.newcomers:
            raise BadInput(f"{run.path}: no newcomers")
        accuracy = run.newcomers["accuracy"].mean(axis=0)
        return np.arange(len(accuracy), dtype=np.float64), 100 * accuracy
    for needed in (column, *({x} & {"virtual_seconds"})):
        if needed not in run.rounds:
            known = ", ".join(run.rounds) or "no rounds yet"
            raise BadInput(f"{run.path}: no column {needed!r} in its rounds ({known})")
    reached = {
        "round": lambda: run.rounds["round"],
        "seconds": lambda: np.cumsum(run.rounds["seconds"]),
        "virtual_seconds": lambda: np.cumsum(run.rounds["virtual_seconds"]),
        "bytes": lambda: np.cumsum(run.rounds["bytes_up"] + run.rounds["bytes_down"]) / 1e9,
    }[x]()
    xs = np.concatenate([[0.0], reached])
    ys = np.concatenate([[run.initial.get(column, np.nan)], run.rounds[column]])
    known_values = ~np.isnan(ys)
    if not known_values.any():
        raise BadInput(f"{run.path}: column {column!r} has no value yet")
    return xs[known_values], ys[known_values] * (100 if _is_share(column) else 1)


def draw(runs: list[Run], output: Path, column: str, x: str) -> None:
    """Draw one curve for each run into `output`, whose suffix tells the format.

    Raises:
        BadInput: matplotlib is not installed, or `output` cannot be written.
    """
    with _picture(output, 5.0, 3.2) as figure:
        axes = figure.subplots()
        styles = cycle((dash, colour) for dash in _DASHES for colour in _COLOURS)
        labels = _labels(runs)
        for run, label, (dash, colour) in zip(runs, labels, styles, strict=False):
            xs, ys = curve(run, column, x)
            marker = "o" if len(xs) <= 25 else None
            axes.plot(xs, ys, dash, color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)
        of_newcomers = column == NEWCOMERS
        axes.set_xlabel("Local epochs of a newcomer" if of_newcomers else X_LABELS[x])
        axes.set_ylabel("Newcomers' accuracy (%)" if of_newcomers else ROUND_LABELS.get(column, _title(column)))
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.margins(x=0.02)
        if len(runs) > 1:
            columns = max(1, 80 // (max(map(len, labels)) + 8))  # about 80 characters fit in a line
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def draw_partitions(runs: list[Run], output: Path, clients: int) -> None:
    """Draw who has what: for each run a panel with a bubble for each of the first clients and each class.

    The area of a bubble is the number of samples, on one scale for all panels.

    Raises:
        BadInput: as `draw`.
    """
    counts = [run.partition["label_counts"][:clients] for run in runs]
    most = max(int(each.max()) for each in counts)
    across = min(len(runs), 3)
    down = -(-len(runs) // across)
    with _picture(output, 0.6 + 2.6 * across, 0.6 + 2.4 * down) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        scale = _LARGEST_BUBBLE / most / max(max(each.shape) for each in counts) ** 2
        for axes, each, label in zip(panels, counts, _labels(runs), strict=False):
            client, of_class = np.nonzero(each)
            axes.scatter(client, of_class, scale * each[client, of_class], _COLOURS[0], linewidths=0)
            axes.set_title(label if len(runs) > 1 else "", fontsize=9)
            axes.set(xlabel="Client", ylabel="Class", xlim=(-0.7, len(each) - 0.3), ylim=(-0.7, each.shape[1] - 0.3))
            for axis in (axes.xaxis, axes.yaxis):
                axis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3, linewidth=0.6)
            axes.set_axisbelow(True)
        for axes in panels[len(runs) :]:
            axes.remove()
        sizes = sorted({-(-most // part) for part in (1, 4, 16)})
        bubbles = [panels[0].scatter([], [], scale * size, _COLOURS[0], linewidths=0) for size in sizes]
        figure.legend(
            bubbles, map(str, sizes), title="Samples", loc="outside right center", frameon=False, fontsize=8
        )


@contextmanager
def _picture(output: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, that is written when it is drawn."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("matplotlib is not installed: pip install 'fedmpi[plot]'") from None
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        try:
            figure.savefig(output, dpi=300)
        except OSError as error:
            raise BadInput(f"{output}: {error.strerror}") from None


def _labels(runs: list[Run]) -> list[str]:
    """What differs between the runs' settings; with the file's name where that leaves two alike."""
    labels = differences([run.settings for run in runs])
    return [
        label if label and labels.count(label) == 1 else f"{label} {run.path.name}".strip()
        for label, run in zip(labels, runs, strict=True)
    ]


def _is_share(column: str) -> bool:
    return column.endswith("accuracy")


def _title(column: str) -> str:
    text = column.replace("_", " ").capitalize()
    return f"{text} (%)" if _is_share(column) else text
