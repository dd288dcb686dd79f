"""Memory that the ranks of a node share, and what is exchanged through it.

On one node a sum over ranks is many times as fast this way as by MPI_Reduce: every rank adds up one share of all
ranks' vectors, where they lie, and nothing is copied. Between nodes MPI carries one vector a node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike, NDArray

from fedmpi.errors import BadInput

if TYPE_CHECKING:
    from fedmpi.mpi.world import World

# Matrix libraries choose code by alignment: whatever a rank may compute with starts on a cache line.
ALIGNMENT = 64
# So many float64 values stay in a core's cache while all ranks' contributions are added to them.
BLOCK_ELEMENTS = 1 << 14


class Segments:
    """Arrays of one length and type that all ranks of a node can read and write.

    Made by all ranks of the node together, and kept until the job ends: a view of it may live on anywhere.

    Args:
        node: the ranks that share memory.
        count: elements of each array.
        dtype: of the elements.
        number: how many arrays; left out, one for each rank.

    Attributes:
        arrays: [count] each; zeros at first.

    Raises:
        BadInput: the node's shared memory is too small; on all ranks of the node. (Without the check the job would
            end by a bus error at the first touch.)
    """

    def __init__(self, node: MPI.Intracomm, count: int, dtype: DTypeLike, number: int | None = None) -> None:
        dtype, number = np.dtype(dtype), number or node.Get_size()
        size = -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        total, first = size * number, node.Get_rank() == 0
        if node.bcast(first and total > _room(), root=0):
            raise BadInput(
                f"/dev/shm on {MPI.Get_processor_name()} is too small: {total >> 20} MiB more are needed; enlarge it"
                " (in a container: --shm-size), or start fewer ranks a node"
            )
        self._window = MPI.Win.Allocate_shared(total + ALIGNMENT if first else 0, 1, comm=node)
        self._window.Lock_all()  # for `publish`
        memory = np.frombuffer(self._window.Shared_query(0)[0].cast("B"), np.uint8)
        # Pages begin alike in all processes, but a rank that is alone on its node gets no whole pages.
        begin = -memory.ctypes.data % ALIGNMENT
        starts = [begin + place * size for place in range(number)]
        self.arrays = [memory[start : start + count * dtype.itemsize].view(dtype) for start in starts]

    def publish(self) -> None:
        """A memory barrier: what this rank wrote is seen by the others, and the other way round."""
        self._window.Sync()


def _room() -> int:
    """Bytes of shared memory that are free on this node."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 1 << 62  # no such place here, so nothing known against it
    return status.f_bavail * status.f_frsize


class SharedMean:
    """Rows of vectors that every rank adds to, and their means over all ranks.

    Args:
        world: the ranks.
        rows, columns: shape of the means.

    Attributes:
        rows: [rows, columns] float64, this rank's sums; a row is undefined while its mass is 0.
        masses: [rows] float64, this rank's; what each row has been added in all, zeros at first.
    """

    def __init__(self, world: World, rows: int, columns: int) -> None:
        self._world = world
        self._sums = Segments(world.node, rows * (columns + 1), np.float64).arrays
        means = Segments(world.node, rows * columns, np.float32, number=1).arrays
        self._all_rows = [array[rows:].reshape(rows, columns) for array in self._sums]
        self._all_masses = [array[:rows] for array in self._sums]
        self._means = means[0].reshape(rows, columns)
        self._scratch = np.empty(BLOCK_ELEMENTS)
        self.rows: NDArray[np.float64] = self._all_rows[world.node.Get_rank()]
        self.masses: NDArray[np.float64] = self._all_masses[world.node.Get_rank()]

    def form(self, total_mass: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The means, and the mass of each; a collective.

        Args:
            total_mass: what the vectors were divided by when they were added.

        Returns:
            [rows, columns] float32: each row's sum times total_mass / its mass, undefined without any mass; in
            memory that the next `form` overwrites. And [rows] masses.
        """
        self._world.meet()
        masses = np.sum(self._all_masses, axis=0)
        if self._world.nodes > 1:
            for row, part in self._my_share():
                self._all_rows[0][row, part] = self._sum_of(row, part)
            self._world.meet()  # before that, others may still read the first rank's masses as its own
            if self._world.leads:
                self._all_masses[0][:] = masses
            self._world.sum_over_nodes(self._sums[0])
            self._world.meet()
            masses = self._all_masses[0].copy()
        # Exactly 1 where the whole cohort was added; masses are integers, so their sum is exact.
        scale = total_mass / np.maximum(masses, 1)
        for row, part in self._my_share():
            summed = self._all_rows[0][row, part] if self._world.nodes > 1 else self._sum_of(row, part)
            np.multiply(summed, scale[row], out=self._means[row, part], casting="same_kind")
        self._world.meet()
        return self._means, masses

    def _my_share(self) -> Iterator[tuple[int, slice]]:
        """The blocks of the means that this rank forms."""
        rows, columns = self._means.shape
        starts = range(0, columns, BLOCK_ELEMENTS)
        blocks = rows * len(starts)
        rank, ranks = self._world.node.Get_rank(), self._world.node.Get_size()
        for block in range(blocks * rank // ranks, blocks * (rank + 1) // ranks):
            row, number = divmod(block, len(starts))
            yield row, slice(starts[number], min(starts[number] + BLOCK_ELEMENTS, columns))

    def _sum_of(self, row: int, part: slice) -> NDArray[np.float64]:
        """The sum over the node's ranks; exact, so the order does not matter."""
        total = self._scratch[: part.stop - part.start]
        contributions = [r[row, part] for r, m in zip(self._all_rows, self._all_masses, strict=True) if m[row]]
        if len(contributions) == 1:
            return contributions[0]
        if not contributions:
            total.fill(0)
            return total
        np.add(contributions[0], contributions[1], out=total)
        for contribution in contributions[2:]:
            total += contribution
        return total
