"""Exact sums of vectors over the ranks of a job, and means from them.

On one node a sum over ranks is many times faster in shared memory than by MPI_Reduce: every rank adds up one part of
all ranks' vectors, and nothing is copied. Between nodes MPI sends one vector per node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from fedmpi.mpi.meeting import Ranks
from fedmpi.mpi.segments import Segments

# Number of 8-byte values that stay in a core's cache while all ranks' contributions are added, and that make up for
# the overhead of calls.
MOST_ELEMENTS, FEWEST_ELEMENTS = 1 << 16, 1 << 13
# Number of size classes for terms that are too large for fixed point, and number of columns at a time.
CLASSES, TOGETHER = 8, 1 << 17


@dataclass(frozen=True)
class FixedPoint:
    """Represents float64 terms of a sum as integers.

    Adding 1.5 * 2^52 * unit to a term t, |t| < 2^51 units, rounds it to a multiple of the unit, and the bit pattern
    of the result, read as an integer, is that of 1.5 * 2^52 * unit plus t in units. So bit patterns can be summed
    exactly instead of floats, which saves one pass over memory.

    Args:
        unit: a power of two.
    """

    unit: float

    @property
    def limit(self) -> float:
        """Upper limit of a term."""
        return 2.0**51 * self.unit

    @property
    def magic(self) -> float:
        """The number that is added to a term."""
        return 1.5 * 2.0**52 * self.unit

    def total(self, patterns: NDArray[np.int64], terms: int, into: NDArray[np.int64]) -> None:
        """The sum in units, from the sum of the terms' bit patterns (modulo 2^64)."""
        bias = int(np.float64(self.magic).view(np.int64)) * terms % 2**64
        np.subtract(patterns.view(np.uint64), np.uint64(bias), out=into.view(np.uint64))


class SharedMean:
    """Rows of vectors that every rank adds to, and their means over all ranks.

    Args:
        ranks: of the job.
        rows, columns: shape of the means.
        kinds: end column -> representation of the columns up to it.

    Attributes:
        formed: [rows, columns] float32 each, memory of formed means.
        rows: [rows, columns] int64, this rank's sums of bit patterns as in `FixedPoint`; undefined while nothing has
            been added. If a row has a single term in total, its float64 bits are stored unrounded.
        masses: [rows] int64, this rank's sums of weights.
        terms: [rows] int64, this rank's numbers of terms; 0 if a row has a single term in total.
        larger: class -> [rows, columns] float64, this rank's sums of terms that are too large for `rows`. Terms of a
            class are multiples of one unit, and their sum is below 2^53 units, so it is exact.
    """

    def __init__(self, ranks: Ranks, rows: int, columns: int, kinds: Sequence[tuple[int, FixedPoint]]) -> None:
        self._ranks = ranks
        self._kinds = kinds
        self._blocks = self._my_share(rows, columns)
        self.formed: list[NDArray[np.float32]] = []
        marks = CLASSES * -(-columns // TOGETHER)
        self._sums = ranks.allocate(rows * (columns + 2) + marks, np.int64)
        self._all_rows = [array[2 * rows : -marks or None].reshape(rows, columns) for array in self._sums]
        self._all_counts = [array[: 2 * rows].reshape(2, rows) for array in self._sums]
        # Which classes have terms among which columns.
        self._all_marks = [array[len(array) - marks :].reshape(CLASSES, -1) for array in self._sums]
        self._in_use: list[ref[NDArray[np.float32]]] = []
        self._integers = np.empty(min(MOST_ELEMENTS, columns), dtype=np.int64)
        self._floats = np.empty(self._integers.shape)
        self.rows: NDArray[np.int64] = self._all_rows[ranks.node.Get_rank()]
        self.masses, self.terms = self._all_counts[ranks.node.Get_rank()]
        self._marks = self._all_marks[ranks.node.Get_rank()]
        self.larger: dict[int, NDArray[np.float64]] = {}

    def suits(self, rows: int, columns: int, kinds: Sequence[tuple[int, FixedPoint]]) -> bool:
        """Whether this object was made with these arguments."""
        return self.rows.shape == (rows, columns) and self._kinds == kinds

    def clear(self) -> None:
        """Reset this rank's sums."""
        self.masses.fill(0)
        self.terms.fill(0)
        self._marks.fill(0)
        self.larger.clear()

    def class_of_larger(self, number: int, columns: slice) -> NDArray[np.float64]:
        """[rows, columns], these columns of this rank's sums of a class, for adding to them."""
        if number not in self.larger:
            self.larger[number] = np.zeros(self.rows.shape)  # only what is written takes memory
        self._marks[number, columns.start // TOGETHER : (columns.stop - 1) // TOGETHER + 1] = 1
        return self.larger[number][:, columns]

    def form(self, total_mass: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Form the means and their total weights; a collective.

        Args:
            total_mass: the number that weights were divided by when vectors were added.

        Returns:
            [rows, columns] float32: each row's sum times total_mass / its weight (undefined without weight), in
                shared memory that is not reused while rank 0 refers to it; and [rows] weights.
        """
        (number, *_) = self._ranks.meet(self._unused())
        if number == len(self.formed):
            # For this node only: rank 0 keeps means longer than others, so its node may need one more.
            segment = Segments(self._ranks.node, self.rows.size, np.float32, number=1).arrays[0]
            self.formed.append(segment.reshape(self.rows.shape))
            self._in_use.append(ref(segment))
        means = self.formed[number].view()
        self._in_use[number] = ref(means)
        (masses, terms), marks = np.sum(self._all_counts, axis=0), np.sum(self._all_marks, axis=0)
        if self._ranks.nodes > 1:
            for row, part, _ in self._blocks:
                self._all_rows[0][row, part] = self._sum_of(row, part)
            self._ranks.meet()  # before that, others may still read the first rank's counts as its own
            if self._ranks.leads:
                self._all_counts[0][:], self._all_marks[0][:] = (masses, terms), marks
            self._ranks.sum_over_nodes(self._sums[0].view(np.uint64))  # as unsigned, so that they may overflow
            self._ranks.meet()
            (masses, terms), marks = self._all_counts[0].copy(), self._all_marks[0].copy()
        larger = self._sum_of_larger(marks) if marks.any() else None
        # Exactly 1 if the whole cohort was added, because weights are integers, whose sum is exact.
        scale = total_mass / np.maximum(masses, 1)
        for row, part, kind in self._blocks:
            summed = self._all_rows[0][row, part] if self._ranks.nodes > 1 else self._sum_of(row, part)
            if not terms[row]:
                means[row, part] = summed.view(np.float64)
                continue
            total, values = self._integers[: len(summed)], self._floats[: len(summed)]
            kind.total(summed, int(terms[row]), into=total)
            np.copyto(values, total)
            values *= kind.unit * scale[row]
            if larger is not None:
                values += larger[row, part] * scale[row]
            means[row, part] = values
        self._ranks.meet()
        return means, masses

    def _sum_of_larger(self, marks: NDArray[np.int64]) -> NDArray[np.float64]:
        """[rows, columns], the sums of all classes over all ranks; a collective."""
        total = np.zeros(self.rows.shape)
        for number, among in np.argwhere(marks).tolist():
            columns = slice(among * TOGETHER, (among + 1) * TOGETHER)
            part = np.zeros_like(total[:, columns])
            if number in self.larger:
                part += self.larger[number][:, columns]
            self._ranks.sum(part)
            total[:, columns] += part
        return total

    def _unused(self) -> int:
        """The number of a mean that is no longer referred to; the next number if there is none."""
        return next((number for number, mean in enumerate(self._in_use) if mean() is None), len(self.formed))

    def _my_share(self, rows: int, columns: int) -> list[tuple[int, slice, FixedPoint]]:
        """The blocks of the means that this rank forms, each of one kind."""
        rank, ranks = self._ranks.node.Get_rank(), self._ranks.node.Get_size()
        width = min(max(rows * columns // (4 * ranks), FEWEST_ELEMENTS), MOST_ELEMENTS)
        begins = [0, *(stop for stop, _ in self._kinds)]
        blocks = [
            (row, slice(first, min(first + width, stop)), kind)
            for row in range(rows)
            for begin, (stop, kind) in zip(begins, self._kinds, strict=False)
            for first in range(begin, stop, width)
        ]
        return blocks[len(blocks) * rank // ranks : len(blocks) * (rank + 1) // ranks]

    def _sum_of(self, row: int, part: slice) -> NDArray[np.int64]:
        """The sum over the node's ranks, modulo 2^64."""
        total = self._integers[: part.stop - part.start]
        contributions = [r[row, part] for r, c in zip(self._all_rows, self._all_counts, strict=True) if c[0, row]]
        if len(contributions) == 1:
            return contributions[0]
        if not contributions:
            total.fill(0)
            return total
        np.add(contributions[0], contributions[1], out=total)
        for contribution in contributions[2:]:
            total += contribution
        return total
