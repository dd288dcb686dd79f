"""Means over seeds with their spread, as tables show them, and which of them are the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedmpi.results.formats import Best, Near
from fedmpi.results.schema import Direction


def spread(values: Sequence[float], of_mean: bool = False, decimals: int | None = None) -> str:
    """`mean ± standard deviation` (with n-1) or, `of_mean`, standard error; of one value itself, of none `-`.

    NaN is no value: how many there are is said, if not all.

    Args:
        decimals: null: as many as give the largest four digits.
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
    """The cells of a column: those of the best mean are `Best`, those whose mean ± spread overlaps with it `Near`.

    A row is compared if all of its runs have a finite value. None is marked where nobody knows which values are
    better, or where all means are equal.

    Args:
        cells: what is shown in each row.
        values: of the runs of each row.
        better: which values are.
        of_mean: as in `spread`.
        kinds: of the rows; those of different kinds are not compared. Empty: all are of one kind.
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
    """What is marked, of the mean and the width of each row."""
    means = [mean for mean, _ in compared.values()]
    if better is None or not means or math.isclose(min(means), max(means)):
        return {}
    top = max(means) if better == "higher" else min(means)
    best = [row for row, (mean, _) in compared.items() if math.isclose(mean, top)]
    reach = max(compared[row][1] for row in best)
    near = [row for row, (mean, width) in compared.items() if abs(mean - top) <= width + reach]
    return {**dict.fromkeys(near, Near), **dict.fromkeys(best, Best)}


def _mean_and_width(values: Sequence[float], of_mean: bool) -> tuple[float, float]:
    """Of a single value, the width is 0."""
    if len(values) == 1:
        return float(values[0]), 0.0
    deviation = np.std(values, ddof=1)
    return float(np.mean(values)), float(deviation / np.sqrt(len(values)) if of_mean else deviation)
