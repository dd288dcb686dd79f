"""What all pictures share: style, colours, panels, and how a file is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from fedmpi.errors import BadInput
from fedmpi.options import shown
from fedmpi.results.reader import Run
from fedmpi.results.settings import names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart, without the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
SUFFIXES = (".png", ".pdf", ".svg")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
_LETTERS = 16  # that fit into an inch


@contextmanager
def picture(output: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, that is written when it is drawn.

    Raises:
        BadInput: matplotlib is not installed, `output` cannot be written, or no picture can be made of the numbers,
            such as of runs of one setting that have not equally many classes.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("matplotlib is not installed: pip install 'fedmpi[plot]'") from None
    with rc_context(_STYLE):
        try:
            figure = Figure(figsize=(width, height), layout="constrained")
            yield figure
            figure.savefig(output, dpi=300)
        except OSError as error:
            raise BadInput(f"{output}: {error.strerror}") from None
        except (ArithmeticError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{output}: cannot be drawn: {shown(error)}") from None


@contextmanager
def panels(output: Path, titles: Sequence[str], width: float, height: float) -> Iterator[list[Axes]]:
    """A panel for each title, at most three in a row, of a size in inches; a single one has no title."""
    across = 2 if len(titles) in (2, 4) else min(len(titles), 3)
    down = -(-len(titles) // across)
    with picture(output, 0.6 + width * across, 0.6 + height * down) as figure:
        axes = list(figure.subplots(down, across, squeeze=False).ravel())
        for panel, title in zip(axes, titles, strict=False):
            panel.set_title(wrapped(title, width) if len(titles) > 1 else "")
        for panel in axes[len(titles) :]:
            panel.remove()
        yield axes[: len(titles)]


def run_names(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs' settings; with the file's name where that leaves two alike."""
    found = names([run.identity for run in runs])
    return [
        label if label and found.count(label) == 1 else f"{label} {run.path.name}".strip()
        for label, run in zip(found, runs, strict=True)
    ]


def wrapped(title: str, width: float) -> str:
    """A title, in lines that fit into so many inches."""
    return fill(title, int(_LETTERS * width))


def legend(names: Sequence[str], width: float) -> tuple[int, float]:
    """How many columns a legend below the axes can have, and how many inches high it is."""
    columns = max(1, int(_LETTERS * width / (max(map(len, names)) + 8)))
    return columns, 0.17 * -(-len(names) // columns)
