from __future__ import annotations

import numpy as np
import pytest

from fedmpi.results.formats import Best, Near
from fedmpi.results.spread import emphasized

# Means 84, 81.5, 70 with deviations of 1.41, so standard errors of 1; nothing; 99 in one of two runs.
VALUES = [[83.0, 85.0], [80.5, 82.5], [69.0, 71.0], [], [99.0, np.nan]]
CELLS = ["a", "b", "c", "d", "e"]


def marks(values: list[list[float]], *how: object, **more: object) -> str:
    """A letter for each cell: B, N, or - of one that is not marked."""
    cells = CELLS[: len(values)]
    found = emphasized(cells, values, *how, **more)  # type: ignore[arg-type]
    assert found == cells, "the texts are the same"
    return "".join("B" if isinstance(cell, Best) else "N" if isinstance(cell, Near) else "-" for cell in found)


def test_the_best_mean_and_those_within_its_spread() -> None:
    """Oracle: by hand: 2.5 apart, which two deviations reach and two standard errors do not."""
    assert marks(VALUES, "higher") == "BN---", "a cell that lacks a run is not compared"
    assert marks(VALUES, "higher", True) == "B----"
    assert marks(VALUES, "lower") == "--B--"
    assert marks(VALUES, None) == "-----"


def test_ties_and_single_runs() -> None:
    assert marks([[1.0], [1.0], [0.5]], "higher") == "BB-"
    assert marks([[1.0], [1.0]], "higher") == "--", "nothing is better than the other"
    assert marks([[1.0]], "higher") == "-"
    assert marks([[1.0], [0.9, 1.0], [np.inf]], "higher") == "BN-", "0.95 ± 0.07 reaches 1"
    assert marks([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.0]], "higher") == "BB-", "the same numbers in another order"


def test_kinds_are_compared_among_themselves() -> None:
    assert marks([[1.0], [2.0], [5.0], [6.0], [7.0]], "higher", kinds=["x", "x", "y", "y", "z"]) == "-B-B-"


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_wide_one_reaches_the_best(better: str) -> None:
    """Oracle: by hand: either spread may be what bridges the gap."""
    sign = 1 if better == "higher" else -1
    wide, narrow, far = [sign * 0.0, sign * 20.0], [sign * 11.0, sign * 11.0], [sign * -9.0, sign * -9.0]
    assert marks([wide, narrow, far], better) == "NB-"
    assert marks([[sign * 2.0, sign * 22.0], narrow, far], better) == "BN-"
