"""Columns of CSV, Parquet and JSON Lines files. Private, because importing it imports pyarrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet
from pyarrow import csv as arrow_csv

from fedmpi.data._published import one_line
from fedmpi.errors import BadInput
from fedmpi.options import shown

#: Characters between the fields of a CSV file; the most frequent one in its first line is used.
SEPARATORS = ",;\t|"
#: pyarrow infers types from the first block only. So a file is one block, as far as pyarrow allows.
LARGEST_BLOCK = 2**31 - 1
#: From here on, float64 does not distinguish all whole numbers.
LARGEST_EXACT = 2**53


@dataclass(frozen=True)
class Frame:
    """The rows of one file, or of several files, one after another.

    Attributes:
        path: the file, or the folder of the files.
        files: the files.
        rows: number of rows of each file.
        names: the names of all columns.
        table: the columns that were read.
    """

    path: Path
    files: Sequence[Path]
    rows: Sequence[int]
    names: Sequence[str]
    table: pa.Table

    def __len__(self) -> int:
        return sum(self.rows)

    def is_numeric(self, name: str) -> bool:
        """Whether a column has numbers. Otherwise it has texts, or true and false.

        Raises:
            BadInput: it has dates, nested or other values.
        """
        kind, types = self.table.schema.field(name).type, pa.types
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
            return True
        if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
            return False
        found = "dates or times" if types.is_temporal(kind) else "nested values" if types.is_nested(kind) else kind
        raise self.refused(name, f"has {found}: make numbers or texts of them, or add --dataset.drop [{name}]")

    def values(self, name: str) -> NDArray:
        """[rows] a column, as float64 numbers with NaN, or as texts with None, where values are missing."""
        column = self.table.column(name)
        if self.is_numeric(name):
            return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
        return np.asarray(column.cast(pa.string()).to_numpy(zero_copy_only=False), object)

    def without_gaps(self, name: str, remedy: str) -> NDArray:
        """`values`, none of which is missing.

        Raises:
            BadInput: some are missing; the line ends with the remedy.
        """
        values = self.values(name)
        if (gaps := missing(values)).any():
            count = f"{gaps.sum()} missing value{'s' * (int(gaps.sum()) > 1)}"
            raise self.refused(name, f"has {count}, the first in {self.place(int(gaps.argmax()))}: {remedy}")
        return values

    def classes(self, name: str, gaps: str, fractions: str) -> NDArray:
        """[rows] a column of classes: whole numbers, which are exact, or texts.

        Args:
            gaps, fractions: what can be done about missing values, and about other numbers.

        Raises:
            BadInput: there are some, or whole numbers that are not exact.
        """
        values, column = self.without_gaps(name, gaps), self.table.column(name)
        if pa.types.is_integer(column.type):
            return np.asarray(column.to_numpy())
        if not self.is_numeric(name):
            return values
        if not (is_whole := values == np.floor(values)).all():
            raise BadInput(f"= {name}: has numbers such as {values[~is_whole][0]:.6g}; {fractions}", "target")
        if (is_large := np.abs(values) > LARGEST_EXACT).any():
            found = f"{values[is_large][0]:.6g}, which are not exact: save them as texts"
            raise BadInput(f"= {name}: has numbers such as {found}", "target")
        return values.astype(np.int64)

    def users(self, name: str, gaps: str) -> NDArray[np.int64]:
        """[rows] the number of each row's user, from 0, in the order of numbers, or else of texts.

        Users are distinguished by the text of the value, as a CSV file has it: 7 and 07 are two users.

        Args:
            gaps: what can be done about missing values.

        Raises:
            BadInput: there are some.
        """
        self.without_gaps(name, gaps)
        texts = self.table.column(name).cast(pa.string())
        known = sorted(texts.unique().to_pylist())
        with suppress(ValueError):
            known.sort(key=float)  # equal numbers stay in the order of their texts
        return np.asarray(compute.index_in(texts, value_set=pa.array(known)).to_numpy(), np.int64)

    def refused(self, name: str, reason: str) -> BadInput:
        """The error that a column cannot be used."""
        return BadInput(f"{self.path}: column {name} {reason}")

    def unknown(self, name: str, option: str) -> BadInput:
        """The error that an option names a column that the files do not have."""
        near = get_close_matches(name, self.names, 1)
        known = f"the nearest name is {near[0]}" if near else f"its columns are {shown(', '.join(self.names))}"
        return BadInput(f"= {shown(name)}: {self.path} has no such column; {known}", option)

    def place(self, row: int) -> str:
        """A row in words, counted from 1 without the line of names."""
        file = int(np.searchsorted(np.cumsum(self.rows), row, side="right"))
        number = row - sum(self.rows[:file]) + 1
        return f"row {number}" if len(self.files) == 1 else f"row {number} of {self.files[file].name}"


def missing(values: NDArray) -> NDArray[np.bool_]:
    """[rows] which of the values of a column are missing."""
    return np.isnan(values) if values.dtype == np.float64 else np.array([each is None for each in values.tolist()])


def read(
    path: Path, files: Sequence[Path], wanted: Collection[str] | None = None, as_written: Collection[str] = ()
) -> Frame:
    """The rows of files that have the same columns.

    Args:
        path: the file, or the folder of the files.
        wanted: the names of the columns that are read; None: all.
        as_written: the names of columns that stay texts in CSV files, even if they look like numbers.

    Raises:
        BadInput: a file is empty or damaged, has columns without names or with the same name, or the files differ.
    """
    heads = [_head(file) for file in files]
    _, names = heads[0]
    for file, (_, others) in zip(files, heads, strict=True):
        if apart := sorted({*names} ^ {*others}):
            only = file if apart[0] in others else files[0]
            raise BadInput(f"{path}: only {only.name} has a column {apart[0]}: all files must have the same columns")
    chosen = [name for name in names if wanted is None or name in wanted]
    tables = [_rows(file, separator, chosen, as_written) for file, (separator, _) in zip(files, heads, strict=True)]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise BadInput(f"{path}: the files have values of different types: {one_line(error)}") from error
    rows = [each.num_rows for each in tables]
    if sum(rows) == 0:
        raise BadInput(f"{path} has no rows")
    return Frame(path, files, rows, names, table)


def _head(path: Path) -> tuple[str, list[str]]:
    """The separator of a CSV file ("" for others), and the names of the columns."""
    with _said_of(path):
        if _format(path) == "JSON Lines":
            separator, names = "", list(next(_objects(path), {}))
        elif _format(path) == "Parquet":
            separator, names = "", list(parquet.read_schema(path).names)
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                separator = max(SEPARATORS, key=file.readline().count)
                file.seek(0)
                names = next(csv.reader(file, delimiter=separator), [])
    if not names:
        first = "be an object" if _format(path) == "JSON Lines" else "have the names of the columns"
        raise BadInput(f"{path} is empty: its first line must {first}")
    if "" in names:
        place = names.index("") + 1
        raise BadInput(f"{path}: column {place} has no name (row numbers of pandas? save with index=False)")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{path} has two columns named {twice}: rename one")
    return separator, names


def _rows(path: Path, separator: str, names: list[str], as_written: Collection[str]) -> pa.Table:
    with _said_of(path):
        if _format(path) == "JSON Lines":
            table = _of_objects(path, names)
        elif _format(path) == "Parquet":
            table = parquet.read_table(path, columns=names)
        else:
            table = arrow_csv.read_csv(
                path,
                # Without threads, pyarrow's messages have the number of the row.
                arrow_csv.ReadOptions(use_threads=False, block_size=min(max(path.stat().st_size, 1), LARGEST_BLOCK)),
                arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                arrow_csv.ConvertOptions(
                    include_columns=names,
                    column_types=dict.fromkeys(as_written, pa.string()),
                    strings_can_be_null=True,
                ),
            )
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Name the file in errors about its contents."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # it cannot be opened
        raise BadInput(f"{path} cannot be read as {_format(path)}: {shown(one_line(error))}") from error


def _of_objects(path: Path, names: list[str]) -> pa.Table:
    columns: dict[str, list[object]] = {name: [] for name in names}
    for each in _objects(path):
        for name, values in columns.items():
            values.append(each.get(name))
    return pa.table({name: _array(path, name, values) for name, values in columns.items()})


def _array(path: Path, name: str, values: list[object]) -> pa.Array:
    try:
        return pa.array(values)
    except OverflowError as error:
        raise BadInput(f"{path}: column {name} has whole numbers beyond 64 bits: save them as texts") from error
    except pa.ArrowException as error:
        kinds = ", ".join(sorted({type(value).__name__ for value in values if value is not None}))
        raise BadInput(f"{path}: column {name} has values of different types ({kinds})") from error


def _objects(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a JSON Lines file; empty lines are passed over."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except json.JSONDecodeError as error:
                raise _damaged(path, number, f"{error.msg} at character {error.pos + 1}") from None
            if not isinstance(found, dict):
                raise _damaged(path, number, "it is no object with the names and values of columns")
            yield found


def _damaged(path: Path, line: int, reason: str) -> BadInput:
    return BadInput(f"{path} is damaged (line {line}: {reason})")


def _format(path: Path) -> str:
    return {".csv": "CSV", ".jsonl": "JSON Lines"}.get(path.suffix.lower(), "Parquet")
