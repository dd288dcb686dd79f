"""Exact sums of vectors over the ranks of a job, and means from them.

On one node a sum over ranks is many times faster in shared memory than by MPI_Reduce: every rank adds up one part of
all ranks' vectors, and nothing is copied. Between nodes `fedmpi.mpi.ascent` sends one vector per node. The means are
formed on rank 0's node.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.mpi.ascent import Ascent
from fedmpi.mpi.segments import Segments
from fedmpi.mpi.transfers import Transfers

# Number of 8-byte values that stay in a core's cache while all ranks' contributions are added, and that make up for
# the overhead of calls.
MOST_ELEMENTS, FEWEST_ELEMENTS = 1 << 16, 1 << 13
# Number that make up for the overhead of a message between nodes.
FEWEST_SENT = 1 << 15
# Numbers that each row has beside its sums: masses, terms, unrounded.
COUNTS = 3
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


#: Of all numbers in means. It is lost in float32 for numbers above 2^-19, and numbers below 2^8 fit.
TERMS = FixedPoint(2.0**-43)


class SharedMean:
    """Rows of vectors that every rank adds to, and their means over all ranks.

    Args:
        ranks: of the job.
        rows, columns: shape of the means.

    Attributes:
        formed: [rows, columns] float32 each, memory of formed means; on rank 0's node.
        rows: [rows, columns] int64, this rank's sums of bit patterns as in `FixedPoint`; undefined while nothing has
            been added. If a row has a single term in total, its float64 bits are stored unrounded.
        masses: [rows] int64, this rank's sums of weights.
        terms: [rows] int64, this rank's numbers of rounded terms.
        unrounded: [rows] int64, 1 if this rank has a row's single term in total; else 0.
        larger: class -> [rows, columns] float64, this rank's sums of terms that are too large for `rows`. Terms of a
            class are multiples of one unit, and their sum is below 2^53 units, so it is exact.
    """

    def __init__(self, ranks: Transfers, rows: int, columns: int) -> None:
        self._ranks = ranks
        blocks = self._divide(rows, columns)
        self._mine = list(enumerate(blocks))[ranks.node.Get_rank() :: ranks.node.Get_size()]
        self.formed: list[NDArray[np.float32]] = []
        marks = CLASSES * -(-columns // TOGETHER)
        self._sums = ranks.allocate(rows * (columns + COUNTS) + marks, np.int64)
        self._all_rows = [array[COUNTS * rows : -marks or None].reshape(rows, columns) for array in self._sums]
        self._all_counts = [array[: COUNTS * rows].reshape(COUNTS, rows) for array in self._sums]
        # Which classes have terms among which columns.
        self._all_marks = [array[len(array) - marks :].reshape(CLASSES, -1) for array in self._sums]
        self._in_use: list[ref[NDArray[np.float32]]] = []
        self._integers = np.empty(min(MOST_ELEMENTS, columns), dtype=np.int64)
        self._floats = np.empty(self._integers.shape)
        self.rows: NDArray[np.int64] = self._all_rows[ranks.node.Get_rank()]
        self.masses, self.terms, self.unrounded = self._counts = self._all_counts[ranks.node.Get_rank()]
        self._marks = self._all_marks[ranks.node.Get_rank()]
        self.larger: dict[int, NDArray[np.float64]] = {}
        # The first rank's memory is that of the node's sums.
        sums = [self._all_rows[0][row, part] for row, part in blocks]
        self._ascent = Ascent(ranks, sums, COUNTS * rows + marks) if ranks.nodes > 1 else None

    def suits(self, rows: int, columns: int) -> bool:
        """Whether this object was made with these arguments."""
        return self.rows.shape == (rows, columns)

    def clear(self) -> None:
        """Reset this rank's sums."""
        self._counts.fill(0)
        self._marks.fill(0)
        self.larger.clear()

    def class_of_larger(self, number: int, columns: slice) -> NDArray[np.float64]:
        """[rows, columns], these columns of this rank's sums of a class, for adding to them."""
        if number not in self.larger:
            self.larger[number] = np.zeros(self.rows.shape)  # only what is written takes memory
        self._marks[number, columns.start // TOGETHER : (columns.stop - 1) // TOGETHER + 1] = 1
        return self.larger[number][:, columns]

    def form(self, total_mass: int) -> tuple[NDArray[np.float32] | None, NDArray[np.int64]]:
        """Form the means and their total weights; a collective.

        Args:
            total_mass: the number that weights were divided by when vectors were added.

        Returns:
            On rank 0's node, [rows, columns] float32: each row's sum times total_mass / its weight (undefined without
                weight), in shared memory that is not reused while rank 0 refers to it. None on other nodes.
            [rows] weights.

        Raises:
            BadInput: a row has an unrounded term on one rank and another term elsewhere; on every rank alike.
        """
        ranks, ascent = self._ranks, self._ascent
        compared = ranks.comparing()
        (number,) = ranks.meet_node(self._unused())
        means = self._memory(number) if ranks.node_of[ranks.rank] == ranks.node_of[0] else None
        counts, marks = np.sum(self._all_counts, axis=0), np.sum(self._all_marks, axis=0)
        masses, terms, unrounded = counts
        if ascent:
            ascent.begin(np.concatenate([counts.reshape(-1), marks.reshape(-1)]))
            for block, (row, part) in self._mine:
                total = self._integers[: part.stop - part.start]
                TERMS.total(self._sum_of(row, part), int(terms[row]), into=total)
                ascent.put(block, total)
            counts, marks = np.split(ascent.counts(), [counts.size])
            masses, terms, unrounded = counts.reshape(COUNTS, -1)
        larger = self._sum_of_larger(marks.reshape(self._marks.shape)) if marks.any() else None
        is_mixed = bool((unrounded * (unrounded + terms) > 1).any())
        # Exactly 1 if the whole cohort was added, because weights are integers, whose sum is exact.
        scale = total_mass / np.maximum(masses, 1)
        for block, (row, part) in self._mine:
            total, values = self._integers[: part.stop - part.start], self._floats[: part.stop - part.start]
            if ascent:
                ascent.take(block, total)
            elif terms[row]:
                TERMS.total(self._sum_of(row, part), int(terms[row]), into=total)
            else:
                total = self._sum_of(row, part)
            if means is None or is_mixed:
                continue
            if not terms[row]:
                means[row, part] = total.view(np.float64)
                continue
            np.copyto(values, total)
            values *= TERMS.unit * scale[row]
            if larger is not None:
                values += larger[row, part] * scale[row]
            means[row, part] = values
        ranks.arrive()
        if ascent:
            ascent.until(lambda: ascent.is_over() and compared())
        ranks.await_node()
        if is_mixed:
            with ranks.agreed():
                reason = "a client that is the whole cohort was added on several ranks: must be added in one loop"
                raise BadInput(f"fed.weighted_mean: {reason} over fed.my_clients")
        return means, masses

    def _memory(self, number: int) -> NDArray[np.float32]:
        """The memory of a mean of this number, which may be new; all ranks of the node must call this together."""
        if number == len(self.formed):
            segment = Segments(self._ranks.node, self.rows.size, np.float32, number=1).arrays[0]
            self.formed.append(segment.reshape(self.rows.shape))
            self._in_use.append(ref(segment))
        means = self.formed[number].view()
        self._in_use[number] = ref(means)
        return means

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

    def _divide(self, rows: int, columns: int) -> list[tuple[int, slice]]:
        """The blocks of the means, the same on all nodes."""
        ranks = max(Counter(self._ranks.node_of).values())
        fewest = FEWEST_ELEMENTS if self._ranks.nodes == 1 else FEWEST_SENT
        width = min(max(rows * columns // (4 * ranks), fewest), MOST_ELEMENTS)
        starts = range(0, columns, width)
        return [(row, slice(start, min(start + width, columns))) for row in range(rows) for start in starts]

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
