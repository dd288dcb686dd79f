"""A table in memory that grows by rows: what rank 0 collects between two writes of the results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Columns:
    """Named columns of one length: int64 or float64, each value a number or an array of a fixed shape.

    A column may start late or miss rows: it is NaN (and float64) there. Rows are put together only when they are
    asked for, so that adding some takes microseconds.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, _Column] = {}

    def add(self, rows: Mapping[str, ArrayLike]) -> None:
        """Append n rows given as columns [n, ...], or one row given as numbers.

        Raises:
            ValueError: the columns differ in length, a value has another shape than the earlier ones of its
                column or is not a number, or a name holds a slash (HDF5 would make a group of it).
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
        """Those of its rows whose column `round` is no larger."""
        columns, kept = dict(self.items()), Columns()
        if columns:
            kept.add({name: values[columns["round"] <= round] for name, values in columns.items()})
        return kept

    def since(self, row: int) -> dict[str, NDArray[Any]]:
        """Those of its rows from this one on, of the columns that have values there, in time for them alone."""
        return {name: column.values(self.rows, row) for name, column in self._columns.items() if column.reaches(row)}

    def items(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and values [rows, ...], in the order in which the columns appeared; views, not copies."""
        for name, column in self._columns.items():
            yield name, column.values(self.rows)


class _Column:
    """Pieces, put together on demand.

    Args:
        shape: of a value.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._pieces: list[NDArray[Any]] = []
        self._rows = 0

    def append(self, row: int, values: NDArray[Any]) -> None:
        """Values from `row` on; NaN for rows that are missed."""
        if values.shape[1:] != self._shape:
            raise ValueError(f"a value of shape {values.shape[1:]} in a column of {self._shape}")
        if row > self._rows:
            self._pieces.append(np.full((row - self._rows, *self._shape), np.nan))
        self._pieces.append(values)
        self._rows = row + len(values)

    def reaches(self, row: int) -> bool:
        return self._rows > row

    def values(self, rows: int, first: int = 0) -> NDArray[Any]:
        """Those from the row `first` on, until there are `rows`."""
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
    """`values` as an array of int64 or float64 with at least one axis, of its own."""
    if type(values) is float:
        array: NDArray[Any] = np.array([values])
    else:
        array = np.array(values, ndmin=1)
    if array.dtype.kind not in "biuf" or "/" in name:
        raise ValueError(f"column {name!r} of {array.dtype}: columns hold numbers, names hold no slash")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64, copy=False)
