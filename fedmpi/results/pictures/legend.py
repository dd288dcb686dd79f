"""The legend of curves: inside the axes if it covers nothing there, otherwise below them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D


def add_legend(figure: Figure, axes: Axes, lines: Sequence[Line2D], grows: bool) -> None:
    """Add a legend to a figure.

    Args:
        figure: the figure.
        axes: the only axes of the figure, with everything drawn except the legend.
        lines: lines with labels, in the order of the legend.
        grows: whether the height of the figure may be increased for a legend below the axes.
    """
    inside = axes.legend(handles=lines, loc="best")
    inside.set_in_layout(False)  # it may be larger than the axes
    figure.draw_without_rendering()  # places all parts of the figure
    if not _covers(inside, axes):
        return
    inside.remove()
    below = _below(figure, lines)
    if grows:
        figure.set_figheight(figure.get_figheight() + below.get_window_extent().height / figure.dpi)


def _covers(legend: Legend, axes: Axes) -> bool:
    """Whether a legend covers curves or their bands, or is larger than the axes."""
    box = legend.get_window_extent()
    if box.width > axes.bbox.width or box.height > axes.bbox.height:
        return True
    drawn = [(line.get_path(), line.get_transform(), False) for line in axes.lines]
    drawn += [(path, band.get_transform(), True) for band in axes.collections for path in band.get_paths()]
    return any(path.transformed(transform).intersects_bbox(box, filled) for path, transform, filled in drawn)


def _below(figure: Figure, lines: Sequence[Line2D]) -> Legend:
    """A legend below the axes, with as many columns as fit into the figure."""
    for columns in range(len(lines), 1, -1):
        legend = figure.legend(handles=lines, loc="outside lower center", ncols=columns)
        if legend.get_window_extent().width <= figure.bbox.width:
            return legend
        legend.remove()
    return figure.legend(handles=lines, loc="outside lower center")
