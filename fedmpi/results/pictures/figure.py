"""The common parts of all pictures: size, style, colours, panels, and writing of the file."""

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

# The colours of Okabe and Ito without yellow; people with any colour vision can distinguish them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SUFFIXES = (".png", ".pdf", ".svg")
#: Widths in inches, from \columnwidth and \textwidth of the venues' LaTeX classes: neurips_2024.sty (one column),
#: icml2024.sty, and IEEEtran.cls (252 pt and 516 pt for conferences and journals on letter paper).
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
    "legend.handlelength": 3,  # long enough to distinguish dashes
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedmpi",  # or names of parts differ from one drawing to the next
}
#: Without the time of the drawing, the same results give the same file.
_METADATA = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_LETTERS = 144  # letters per inch, times the font size in points
_MARGIN = 0.6  # inches for what the panels share, such as a colour bar
_NARROWEST = 0.6  # smallest width of a panel, as a fraction of its preferred width

Size = Literal["axes.labelsize", "axes.titlesize", "legend.fontsize", "ytick.labelsize"]


@dataclass(frozen=True)
class Sheet:
    """The file of a picture, its size and its style.

    Args:
        output: the file to write; its suffix determines the format.
        width, height: size in inches; None: the default of the kind of picture.
        font_size: size of the text in points; None: the size of the style.
        font: a font family or the name of an installed font; None: the font of the style.
        style: name of a matplotlib style, or path of a style file; the colours of data are always `COLOURS`.
    """

    output: Path
    width: float | None = None
    height: float | None = None
    font_size: float | None = None
    font: str | None = None
    style: str | None = None


@contextmanager
def picture(sheet: Sheet, width: float, height: float) -> Iterator[Figure]:
    """An empty figure to draw on; it is written to the file of the sheet at the end of the block.

    Args:
        sheet: the file and its layout.
        width, height: size in inches, unless the sheet specifies another one.

    Raises:
        BadInput: matplotlib is not installed, the style or the font is unknown, the file cannot be written, the
            figure is too small for its labels, or the values cannot be drawn (for example because runs with the same
            settings have different numbers of classes).
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
            figure.savefig(sheet.output, metadata=_METADATA.get(sheet.output.suffix))
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
    """One panel per title, at most three per row. A single panel has no title.

    If the sheet specifies a width, the panels are scaled to it. Rows have fewer panels if they would be too narrow.

    Args:
        sheet: the file and its layout.
        titles: one title per panel.
        width, height: size of a panel in inches, before scaling.

    Raises:
        BadInput: the picture cannot be drawn or written, see `picture`.
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
        figure.draw_without_rendering()  # `inches` needs the layout
        yield axes[: len(titles)]


def run_names(runs: Sequence[Run]) -> list[str]:
    """One name per run: the settings in which it differs from the others, plus the file name if not unique."""
    found = names([run.identity for run in runs])
    return [
        label if label and found.count(label) == 1 else f"{label} {run.path.name}".strip()
        for label, run in zip(found, runs, strict=True)
    ]


def wrapped(text: str, width: float, size: Size) -> str:
    """A text, broken into lines that fit into a width.

    Args:
        text: the text.
        width: width in inches.
        size: the parameter of matplotlib that determines the font size.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    points = FontProperties(size=rcParams[size]).get_size_in_points()
    return fill(text, max(int(_LETTERS * width / points), 8))


def inches(axes: Axes) -> tuple[float, float]:
    """Width and height of axes in inches, as of the last layout of the figure."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def _apply(sheet: Sheet) -> None:
    """Set matplotlib's parameters for the style and the font of a sheet.

    Raises:
        BadInput: the style or the font is unknown.
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
        rcParams["font.family"] = [sheet.font, "DejaVu Sans"]  # the second has characters such as ±
    if sheet.style:
        with _refusing(f"{sheet.style} without --font"):
            findfont(FontProperties(), fallback_to_default=False)
    rcParams["savefig.bbox"] = None  # a style may crop the picture, which changes its width


@contextmanager
def _refusing(style: str) -> Iterator[None]:
    """Raise BadInput for matplotlib's warnings about a style; matplotlib itself only logs them and skips the line."""

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
