"""What the runs of a table or picture must have in common."""

from __future__ import annotations

from collections.abc import Sequence

from fedmpi.errors import BadInput
from fedmpi.results.reader import Run
from fedmpi.results.schema import Array


def main_metric(runs: Sequence[Run], advice: str) -> str:
    """The main metric of all runs.

    Args:
        runs: the runs, at least one.
        advice: what the user can do if the runs have several main metrics; the end of the error's line.

    Raises:
        BadInput: they have several.
    """
    first = runs[0]
    for run in runs:
        if run.main_metric != first.main_metric:
            raise BadInput(
                f"{first.path} has the main metric {first.main_metric}, {run.path} has {run.main_metric}: {advice}"
            )
    return first.main_metric


def chosen(runs: Sequence[Run], column: str | None) -> str:
    """The given column of /rounds; None: the main metric on the test set.

    Raises:
        BadInput: no column is given, and the runs have several main metrics.
    """
    return column or f"test_{main_metric(runs, 'give --column, such as --column train_loss')}"


def described(runs: Sequence[Run], column: str) -> Array:
    """The description of a column of /rounds, which must have the same unit and direction in all runs.

    Raises:
        BadInput: it has not.
    """
    first, about = runs[0], runs[0].described(column)
    for run in runs:
        other = run.described(column)
        if (other.unit, other.better) != (about.unit, about.better):
            raise BadInput(f"--column = {column}: has another unit or direction in {run.path} than in {first.path}")
    return about
