"""A table in memory that grows by rows: what rank 0 collects between two writes of the results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Columns:
    """Named columns of one length: int64 or float64, each value a number or an array of a fixed shape.

    A column may start late or miss rows: it is NaN (and float64) there.
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
            if name not in self._columns:
                self._columns[name] = _Column(values)
            self._columns[name].extend_from(self.rows, values)
        self.rows += lengths.pop()

    def items(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and values [rows, ...], in the order in which the columns appeared; views, not copies."""
        for name, column in self._columns.items():
            column.fill_up_to(self.rows)
            yield name, column.values


class _Column:
    """A buffer that doubles when it is full, so that appending takes constant time on average."""

    def __init__(self, like: NDArray[Any]) -> None:
        self._buffer = np.empty_like(like[:0])
        self._rows = 0

    @property
    def values(self) -> NDArray[Any]:
        return self._buffer[: self._rows]

    def fill_up_to(self, row: int) -> None:
        if row > self._rows:
            self._extend(np.full((row - self._rows, *self._buffer.shape[1:]), np.nan))

    def extend_from(self, row: int, values: NDArray[Any]) -> None:
        if values.shape[1:] != self._buffer.shape[1:]:
            raise ValueError(f"a value of shape {values.shape[1:]} in a column of {self._buffer.shape[1:]}")
        self.fill_up_to(row)
        self._extend(values)

    def _extend(self, values: NDArray[Any]) -> None:
        end = self._rows + len(values)
        dtype = np.promote_types(self._buffer.dtype, values.dtype)
        if end > len(self._buffer) or dtype != self._buffer.dtype:
            grown = np.empty((max(end, 2 * len(self._buffer)), *self._buffer.shape[1:]), dtype)
            grown[: self._rows] = self.values
            self._buffer = grown
        self._buffer[self._rows : end] = values
        self._rows = end


def _numbers(name: str, values: ArrayLike) -> NDArray[Any]:
    """`values` as an array of int64 or float64 with at least one axis."""
    array = np.array(values, ndmin=1, copy=None)
    if array.dtype.kind not in "biuf" or "/" in name:
        raise ValueError(f"column {name!r} of {array.dtype}: columns hold numbers, names hold no slash")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64, copy=False)
