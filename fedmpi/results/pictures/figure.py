"""What all pictures share: size, style, colours, panels, and how a file is written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from fedmpi.errors import BadInput, require
from fedmpi.options import printable, shown
from fedmpi.results.reader import Run
from fedmpi.results.settings import names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart, without the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SUFFIXES = (".png", ".pdf", ".svg")
#: Inches of what venues' LaTeX classes call \columnwidth and \textwidth: neurips_2024.sty (one column), icml2024.sty,
#: IEEEtran.cls (252 pt and 516 pt for conferences and journals on letter paper).
WIDTHS = {
    "NeurIPS-column": 5.5,
    "NeurIPS-page": 5.5,
    "ICML-column": 3.25,
    "ICML-page": 6.75,
    "IEEE-column": 252 / 72.27,
    "IEEE-page": 516 / 72.27,
}
_FAMILIES = ("serif", "sans-serif", "monospace")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "legend.handlelength": 3,  # so that dashes can be told apart
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
}
_LETTERS = 144  # that fit into an inch, times the size of the font
_MARGIN = 0.6  # inches that panels leave to what they share
_NARROWEST = 0.6  # of a panel, as a share of the width that it would like to have

Size = Literal["axes.labelsize", "axes.titlesize", "legend.fontsize", "ytick.labelsize"]


@dataclass(frozen=True)
class Sheet:
    """Where a picture goes, and what it has to fit.

    Args:
        output: the file; its suffix says the format.
        width, height: in inches; None: as the kind of picture needs.
        font_size: in points; None: as the style says.
        font: a family or the name of a font; None: as the style says.
        style: of matplotlib, by name or as a file. Colours of data stay those of `COLOURS`.
    """

    output: Path
    width: float | None = None
    height: float | None = None
    font_size: float | None = None
    font: str | None = None
    style: str | None = None


@contextmanager
def picture(sheet: Sheet, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, of this size in inches unless the sheet has another, that is written when it is drawn.

    Raises:
        BadInput: matplotlib is not installed, style or font is not known, the file cannot be written, the size has no
            room for the labels, or no picture can be made of the numbers, such as of runs of one setting with unequal
            numbers of classes.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("matplotlib is not installed: pip install 'fedmpi[plot]'") from None
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("error", ".*constrained_layout not applied")
        _apply(sheet)
        try:
            figure = Figure(figsize=(sheet.width or width, sheet.height or height), layout="constrained")
            yield figure
            figure.savefig(sheet.output)
        except OSError as error:
            raise BadInput(f"{sheet.output}: {error.strerror}") from None
        except UserWarning:
            raise BadInput(
                f"{sheet.output}: is too small for its labels; a larger --width or --height helps"
            ) from None
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{sheet.output}: cannot be drawn: {shown(error)}") from None


@contextmanager
def panels(sheet: Sheet, titles: Sequence[str], width: float, height: float) -> Iterator[list[Axes]]:
    """A panel for each title, at most three in a row, of a size in inches; a single one has no title.

    Where the sheet has a width, panels are scaled to it, and fewer are in a row if they would be too narrow.
    """
    across = 2 if len(titles) in (2, 4) else min(len(titles), 3)
    if sheet.width:
        across = max(1, min(across, int((sheet.width - _MARGIN) / (_NARROWEST * width))))
    total = sheet.width or _MARGIN + width * across
    scale = (total - _MARGIN) / across / width
    down = -(-len(titles) // across)
    with picture(sheet, total, _MARGIN + scale * height * down) as figure:
        axes = list(figure.subplots(down, across, squeeze=False).ravel())
        for panel, title in zip(axes, titles, strict=False):
            panel.set_title(wrapped(title, scale * width, "axes.titlesize") if len(titles) > 1 else "")
        for panel in axes[len(titles) :]:
            panel.remove()
        figure.draw_without_rendering()  # for `inches`
        yield axes[: len(titles)]


def run_names(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs' settings; with the file's name where that leaves two alike."""
    found = names([run.identity for run in runs])
    return [
        label if label and found.count(label) == 1 else f"{label} {run.path.name}".strip()
        for label, run in zip(found, runs, strict=True)
    ]


def wrapped(text: str, width: float, size: Size) -> str:
    """A text in lines that fit into so many inches, where it is as large as that parameter of matplotlib says."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    points = FontProperties(size=rcParams[size]).get_size_in_points()
    return fill(text, max(int(_LETTERS * width / points), 8))


def inches(axes: Axes) -> tuple[float, float]:
    """Width and height of axes, as they were when the figure was last laid out."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def _apply(sheet: Sheet) -> None:
    """Set matplotlib's parameters.

    Raises:
        BadInput: style or font is not known.
    """
    from matplotlib import rcParams, style
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    if sheet.style:
        known = [name for name in style.available if not name.startswith("_")]
        is_known = sheet.style in known or Path(sheet.style).is_file()
        require(is_known, "--style", sheet.style, f"a file, or one of matplotlib's styles {', '.join(known)}")
        with _refusing(sheet.style):
            style.use(sheet.style)
    if sheet.font_size:
        rcParams["font.size"] = sheet.font_size
    if sheet.font:
        installed = fontManager.get_font_names()
        near = ", ".join(get_close_matches(sheet.font, installed)) or "STIXGeneral, which is like Times"
        allowed = f"{', '.join(_FAMILIES)} or the name of an installed font, such as {near}"
        require(sheet.font in (*_FAMILIES, *installed), "--font", sheet.font, allowed)
        rcParams["font.family"] = [sheet.font, "DejaVu Sans"]  # the second has what the first may lack, such as ±
    if sheet.style:
        with _refusing(f"{sheet.style} without --font"):
            findfont(FontProperties(), fallback_to_default=False)
    rcParams["savefig.bbox"] = None  # a style may crop the picture, which then has another width


@contextmanager
def _refusing(style: str) -> Iterator[None]:
    """Make matplotlib's complaints about a file of a style an error: it logs them, and leaves the line out."""

    class Refusing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError(record.getMessage().strip().splitlines()[0])

    logger, handler = logging.getLogger("matplotlib"), Refusing(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    except (OSError, ValueError) as error:
        raise BadInput(f"--style = {style}: cannot be used: {printable(str(error))}") from None
    finally:
        logger.removeHandler(handler)
