"""Files of measured devices: CSV tables of numbers with a header line."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.options import shown
from fedmpi.policies.clock import LONGEST


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        path: of the file.
        lines: [n] int64, the line of each row in the file, from 1.
        columns: name -> [n] float64 values. Client numbers are int64.
    """

    path: Path
    lines: NDArray[np.int64]
    columns: dict[str, NDArray]

    def __len__(self) -> int:
        return len(self.lines)

    def refuse(self, rows: NDArray[np.bool_], column: str, allowed: str, option: str = "path") -> None:
        """Raise BadInput for the first of these rows, with its line and its value."""
        for row in np.flatnonzero(rows)[:1]:
            value = self.columns[column][row]
            raise _bad(self.path, f"{column} = {value:.16g}: must be {allowed}", int(self.lines[row]), option)


def read_table(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read a CSV file: UTF-8, commas, a header line; # begins a remark, and empty lines are skipped.

    Args:
        names: the columns, in any order. The column `client` has whole numbers of at least 0, the others finite
            numbers.
        optional: names of columns that may be left out.

    Raises:
        BadInput: the file cannot be read, has other columns, no rows, or a value of another kind. The message has the
            line.
    """
    rows = _rows(path)
    number, header = next(rows, (0, []))
    if not header:
        raise BadInput(f"= {path}: must have a header line with {', '.join(names)}", "path")
    for name in header:
        if name not in names:
            raise _bad(path, f"unknown column {shown(name)}: must be {', '.join(names)}", number)
        if header.count(name) > 1:
            raise _bad(path, f"the column {name} must be there once", number)
    for name in names:
        if name not in header and name not in optional:
            raise _bad(path, f"the header has no column {name}", number)
    lines: list[int] = []
    values: list[list[float]] = []
    for number, texts in rows:
        if len(texts) != len(header):
            raise _bad(path, f"has {len(texts)} values: must be {len(header)}, as in the header", number)
        lines.append(number)
        values.append([_number(path, number, *cell) for cell in zip(header, texts, strict=True)])
    if not lines:
        raise BadInput(f"= {path}: must have at least one line below the header", "path")
    columns = dict(zip(header, np.array(values, dtype=np.float64).T, strict=True))
    if "client" in columns:
        columns["client"] = columns["client"].astype(np.int64)
    return Table(path, np.array(lines, dtype=np.int64), columns)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and values of each line that has any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"= {path}: {getattr(error, 'strerror', None) or 'is not a text file'}", "path") from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                yield number, [value.strip() for value in next(csv.reader([text], strict=True))]
            except csv.Error as error:
                raise _bad(path, f"{error}", number) from None


def _number(path: Path, line: int, column: str, text: str) -> float:
    if column == "client":
        if text.isascii() and text.isdigit() and len(text) < 16:
            return int(text)
        raise _bad(path, f"client = {shown(text)}: must be a whole number of at least 0", line)
    try:
        value = float(text)
    except ValueError:
        raise _bad(path, f"{column} = {shown(text)}: must be a number", line) from None
    if not math.isfinite(value) or value > LONGEST:
        raise _bad(path, f"{column} = {shown(text)}: must be a number up to {LONGEST:.0f}", line)
    return value


def _bad(path: Path, reason: str, line: int, option: str = "path") -> BadInput:
    return BadInput(f"= {path}, line {line}: {reason}", option)
