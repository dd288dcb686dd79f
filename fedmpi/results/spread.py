"""Means over seeds with their spread, as text for tables, and the marks of the best means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedmpi.results.formats import Best, Near
from fedmpi.results.schema import Direction


def spread(values: Sequence[float], of_mean: bool = False, decimals: int | None = None) -> str:
    """The text `mean ± spread` of some values.

    NaN values are left out. If there are any, the text ends with the number of values that are left, such as
    `(2 of 3)`. The spread is not shown if only one value is left or if a value is infinite. The text is `-` if no
    value is left.

    Args:
        values: one value per run.
        of_mean: whether the spread is the standard error of the mean; else it is the standard deviation (with n-1).
        decimals: number of digits after the decimal point; None: so many that the largest value has four digits.
    """
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "-"
    some = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    finite = [abs(value) for value in known if np.isfinite(value)]
    if decimals is None:
        largest = max(finite, default=0)
        decimals = min(max(3 - math.floor(math.log10(largest)), 0), 8) if largest else 2
    if len(known) == 1 or len(finite) < len(known):
        return f"{np.mean(known):.{decimals}f}{some}"
    mean, width = _mean_and_width(known, of_mean)
    return f"{mean:.{decimals}f} ± {width:.{decimals}f}{some}"


def emphasized(
    cells: Sequence[str],
    values: Sequence[Sequence[float]],
    better: Direction | None,
    of_mean: bool = False,
    kinds: Sequence[str] = (),
) -> list[str]:
    """Mark the best cells of a column as `Best`, and those that overlap with the best as `Near`.

    A cell is the best if its row has the best mean. It overlaps if its mean ± spread overlaps with that of the best.
    A row is compared only if all of its runs have a finite value. No cell is marked if it is not known which values
    are better, or if all means are equal.

    Args:
        cells: the text of each row.
        values: for each row, the values of its runs.
        better: which values are better; None: not known.
        of_mean: whether the spread is the standard error, as in `spread`.
        kinds: the kind of each row. Only rows of the same kind are compared. Empty: all rows are of one kind.

    Returns:
        The cells, of which some are now `Best` or `Near`.
    """
    kinds, marked = kinds or [""] * len(cells), list(cells)
    for kind in dict.fromkeys(kinds):
        compared = {
            row: _mean_and_width(found, of_mean)
            for row, found in enumerate(values)
            if kinds[row] == kind and found and np.isfinite(found).all()
        }
        for row, mark in _marks(compared, better).items():
            marked[row] = mark(cells[row])
    return marked


def _marks(compared: Mapping[int, tuple[float, float]], better: Direction | None) -> dict[int, type[str]]:
    """The rows to mark and their marks, from the mean and the spread of each row."""
    means = [mean for mean, _ in compared.values()]
    if better is None or not means or math.isclose(min(means), max(means)):
        return {}
    top = max(means) if better == "higher" else min(means)
    best = [row for row, (mean, _) in compared.items() if math.isclose(mean, top)]
    reach = max(compared[row][1] for row in best)
    near = [row for row, (mean, width) in compared.items() if abs(mean - top) <= width + reach]
    return {**dict.fromkeys(near, Near), **dict.fromkeys(best, Best)}


def _mean_and_width(values: Sequence[float], of_mean: bool) -> tuple[float, float]:
    """Mean and spread; the spread of a single value is 0."""
    if len(values) == 1:
        return float(values[0]), 0.0
    deviation = np.std(values, ddof=1)
    return float(np.mean(values)), float(deviation / np.sqrt(len(values)) if of_mean else deviation)
