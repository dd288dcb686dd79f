"""A table in memory that grows by rows. Rank 0 collects the rows of a results file in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Columns:
    """Named columns of equal length, of type int64 or float64.

    A value is a number or an array. All values of a column have the same shape. A column may start late or miss rows:
    the missing values are NaN, and the column is then float64. Adding rows takes microseconds, because they are
    concatenated only when values are requested.

    Attributes:
        rows: the number of rows.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, _Column] = {}

    def add(self, rows: Mapping[str, ArrayLike]) -> None:
        """Append rows.

        Args:
            rows: name -> values [n, ...] for n rows, or name -> number for one row.

        Raises:
            ValueError: the columns differ in length, a value is not a number or has a different shape than the
                earlier values of its column, or a name contains a slash (HDF5 would create a group).
        """
        tables = {name: _numbers(name, values) for name, values in rows.items()}
        lengths = {len(values) for values in tables.values()}
        if len(lengths) != 1:
            raise ValueError(f"columns {', '.join(tables)} have lengths {sorted(lengths)}, not one length")
        for name, values in tables.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = _Column(values.shape[1:])
            column.append(self.rows, values)
        self.rows += lengths.pop()

    def until(self, round: int) -> Columns:
        """A new table with the rows whose column `round` is at most the given one."""
        columns, kept = dict(self.items()), Columns()
        if columns:
            kept.add({name: values[columns["round"] <= round] for name, values in columns.items()})
        return kept

    def since(self, row: int) -> dict[str, NDArray[Any]]:
        """The values [rows - row, ...] from this row on, of the columns that have values there.

        The time that it takes depends only on the number of these rows.
        """
        return {name: column.values(self.rows, row) for name, column in self._columns.items() if column.reaches(row)}

    def items(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and values [rows, ...] of the columns, in the order in which they were first added.

        The values are views where no rows are missing at the end of a column.
        """
        for name, column in self._columns.items():
            yield name, column.values(self.rows)


class _Column:
    """One column: a list of arrays that are concatenated on demand.

    Args:
        shape: shape of each value.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._pieces: list[NDArray[Any]] = []
        self._rows = 0

    def append(self, row: int, values: NDArray[Any]) -> None:
        """Append values [n, *shape] whose first row is `row`; rows before it that have no value are NaN."""
        if values.shape[1:] != self._shape:
            raise ValueError(f"a value of shape {values.shape[1:]} in a column of {self._shape}")
        if row > self._rows:
            self._pieces.append(np.full((row - self._rows, *self._shape), np.nan))
        self._pieces.append(values)
        self._rows = row + len(values)

    def reaches(self, row: int) -> bool:
        return self._rows > row

    def values(self, rows: int, first: int = 0) -> NDArray[Any]:
        """The values [rows - first, *shape] from the row `first` up to the row `rows`; NaN where there are none."""
        place, begin = len(self._pieces) - 1, self._rows - len(self._pieces[-1])
        while place and begin > first:
            place -= 1
            begin -= len(self._pieces[place])
        if len(self._pieces) - place > 1:
            self._pieces[place:] = [np.concatenate(self._pieces[place:])]
        missing = np.full((rows - self._rows, *self._shape), np.nan)
        known = self._pieces[place][first - begin :]
        return np.concatenate([known, missing]) if len(missing) else known


def _numbers(name: str, values: ArrayLike) -> NDArray[Any]:
    """A copy of `values` as an array of int64 or float64 with at least one axis.

    Raises:
        ValueError: the values are no numbers, or the name contains a slash.
    """
    if type(values) is float:
        array: NDArray[Any] = np.array([values])
    else:
        array = np.array(values, ndmin=1)
    if array.dtype.kind not in "biuf" or "/" in name:
        raise ValueError(f"column {name!r} of {array.dtype}: columns hold numbers, names hold no slash")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64, copy=False)
