"""Small vectors of all ranks, memory that a node shares, and vectors on their way between nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike, NDArray

from fedmpi.mpi.buffers import chunks, reshaped_like
from fedmpi.mpi.guard import Guard
from fedmpi.mpi.meeting import Ranks
from fedmpi.mpi.segments import Segments
from fedmpi.mpi.tree import Descent


class Transfers(Ranks):
    """The ranks of one job, which can share memory and exchange small vectors.

    Args:
        comm, ranks_a_node, guard: as for `Ranks`.

    Attributes:
        transferred: seconds that this rank has spent on transfers so far.
    """

    def __init__(
        self, comm: MPI.Intracomm | None = None, ranks_a_node: int | None = None, *, guard: Guard | None = None
    ) -> None:
        super().__init__(comm, ranks_a_node, guard=guard)
        self.transferred = 0.0
        self._scratch: list[list[NDArray[np.uint8]]] = [[], []]

    def allocate(self, count: int, dtype: DTypeLike, number: int | None = None) -> list[NDArray]:
        """Arrays [count] on each node, made by `Segments`; a collective.

        Raises:
            BadInput: a node has too little shared memory; on every rank alike.
        """
        self.meet()
        with self.agreed():
            return Segments(self.node, count, dtype, number).arrays

    def sum(self, buffer: NDArray) -> None:
        """Replace the contiguous `buffer` of every rank by the sum over the ranks; for small buffers."""
        if self.size == 1:
            return
        self.settle()
        with self.transferring():
            arrays = [reshaped_like(array, buffer) for array in self._next_scratch(buffer.nbytes)]
            arrays[self.node.Get_rank()][...] = buffer
            self.meet_node()
            if self.nodes == 1:
                np.sum(arrays, axis=0, out=buffer)
                return
            if self.leaders:
                np.sum(arrays, axis=0, out=buffer)
                self.sum_over_nodes(buffer)
                arrays[0][...] = buffer
            self.meet_node()
            buffer[...] = arrays[0]

    def tell(self, vector: NDArray) -> NDArray:
        """Rank 0's contiguous `vector` on every rank; the others pass one of the same shape and type.

        For small vectors.

        Returns: The vector, in memory that is soon reused by later calls of this or of `sum`: copy it at once.
        """
        if self.size == 1:
            return vector
        self.settle()
        with self.transferring():
            memory = reshaped_like(self._next_scratch(vector.nbytes)[0], vector)
            if self.is_server:
                memory[...] = vector
            self.pass_down(memory, root=0)
            return memory

    def pass_down(self, array: NDArray, root: int, *words: int) -> tuple[int, ...]:
        """Send the array of a node's first rank into the arrays of the other nodes' first ranks.

        Ends with a barrier of each node, see `meet_node`. Other ranks of a node need not pass the array.

        Args:
            root: the number of the node that sends.
        """
        if not self.leaders or self.nodes == 1:
            return self.meet_node(*words)
        compared = self.comparing(root)
        descent = Descent(self.leaders, self.waiting, array, root)
        self.waiting.poll(lambda: descent.has_arrived() and compared())
        self.arrive(*words)  # other ranks of this node can continue, while this one passes the array on
        self.waiting.poll(descent.is_over)
        return self.await_node(len(words))

    def sum_over_nodes(self, buffer: NDArray) -> None:
        """Replace the leaders' `buffer` by the sum over the nodes; other ranks do nothing."""
        if self.leaders:
            for part in chunks(buffer):
                self.waiting.poll(self.leaders.Iallreduce(MPI.IN_PLACE, part, op=MPI.SUM).Test)

    @contextmanager
    def transferring(self) -> Iterator[None]:
        """Count the time of a transfer, without waiting."""
        started, waited = time.perf_counter(), self.waiting.seconds
        yield
        self.transferred += time.perf_counter() - started - (self.waiting.seconds - waited)

    def _next_scratch(self, size: int) -> list[NDArray[np.uint8]]:
        # Two alternating buffers: a rank may fill one for the next sum while another rank still reads the last.
        self._scratch.reverse()
        if not self._scratch[0] or len(self._scratch[0][0]) < size:
            self._scratch[0] = self.allocate(size, np.uint8)
        return self._scratch[0]
