"""Columns of a table as features. What they are scaled and coded by is known from the training samples only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Standardised(NamedTuple):
    """(x - mean) / std, with the mean and the standard deviation of the training samples.

    A column that is constant in the training samples has std 1, so it is 0 there.
    """

    values: NDArray[np.float64]
    mean: float
    std: float


def standardised(column: NDArray[np.float64], is_test: NDArray[np.bool_]) -> Standardised:
    """A column [n] of finite numbers, standardised."""
    known = column[~is_test]
    if known.min() == known.max():
        mean, std = float(known[0]), 1.0
    else:
        mean, std = float(known.mean()), float(known.std())
    return Standardised((column - mean) / std, mean, std)


def categories(texts: NDArray, is_test: NDArray[np.bool_]) -> list[str | None]:
    """The different texts [n] of the training samples, sorted; None (missing) comes last."""
    return sorted({*texts[~is_test].tolist()}, key=lambda text: (text is None, text or ""))


def one_hot(texts: NDArray, known: list[str | None]) -> NDArray[np.float64]:
    """[n, categories]; texts of no category are zero in all columns."""
    return np.array([[text == category for category in known] for text in texts.tolist()], np.float64)
