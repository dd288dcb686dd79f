"""Collectives over vectors: broadcasts, means, and exchanges between pairs of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.mpi.ascent import INBOX_BYTES
from fedmpi.mpi.buffers import chunks, offset_in, reshaped_like
from fedmpi.mpi.guard import Guard
from fedmpi.mpi.segments import TooLittleMemory, room
from fedmpi.mpi.shared_mean import SharedMean
from fedmpi.mpi.transfers import Transfers

# Number of results of a sum in memory: the one that rank 0 still uses, and the next.
RESULTS = 2
# Bytes of shared memory that MPI libraries take for each rank once they move large vectors.
MPI_FOR_A_RANK = 3 << 20
NOWHERE = -1


class World(Transfers):
    """The ranks of one job, with collectives over vectors.

    Args:
        comm, ranks_a_node, guard: as for `Ranks` (`fedmpi.mpi.meeting`).
    """

    def __init__(
        self, comm: MPI.Intracomm | None = None, ranks_a_node: int | None = None, *, guard: Guard | None = None
    ) -> None:
        super().__init__(comm, ranks_a_node, guard=guard)
        self._broadcasts: list[NDArray[np.uint8]] = []
        self._means: list[SharedMean] = []
        self.begin_round()

    def begin_round(self) -> None:
        """Allow the memory of the last round's broadcasts and means to be reused."""
        self._broadcasts_used = 0
        self._means_used = 0

    def broadcast(self, vector: NDArray | Sequence[NDArray]) -> NDArray:
        """Rank 0's contiguous `vector` on every rank; the others pass one of the same shape and type.

        Args:
            vector: or several vectors, of which a matrix is made.

        Returns: The vector, in memory that the ranks of the node share. It is read-only, and valid until the end of
            the round.
        """
        if not isinstance(vector, np.ndarray):
            return self._broadcast(np.broadcast_to(vector[0], (len(vector), *vector[0].shape)), vector)
        return self._broadcast(vector, None)

    def _broadcast(self, vector: NDArray, rows: Sequence[NDArray] | None) -> NDArray:
        """The same of a vector, or of a matrix of these rows."""
        if self.size == 1:
            return vector if rows is None else np.stack(rows)
        with self.transferring():
            region = reshaped_like(self._next_region(vector.nbytes), vector)
            # A mean that was formed in the node's memory is not copied.
            where = self._place_of(vector) if self.is_server and rows is None else None
            if self.is_server and where is None:
                for place, row in zip(region, rows, strict=True) if rows else [(region, vector)]:
                    place[...] = row
            mean, formed, offset = self.pass_down(vector if where else region, 0, *(where or (NOWHERE, 0, 0)))
            if where is not None:
                return vector  # a reference, which keeps that memory from being reused
            if mean == NOWHERE:
                return region
            memory = self._means[mean].formed[formed].reshape(-1).view(np.uint8)
            return reshaped_like(memory[offset:], vector)

    def relay(self, holders: Sequence[int], mine: Iterator[NDArray], like: NDArray) -> Iterator[NDArray]:
        """Vectors of several ranks, one after the other on every rank; all ranks must take all of them.

        Args:
            holders: the rank of each vector.
            mine: this rank's vectors, in the same order.
            like: a vector of the same shape and type as each of them.

        Returns: The vectors, in memory that the ranks of the node share. Each is read-only, and valid until the next
            one is taken.
        """
        if self.size == 1:
            yield from mine
            return
        self.settle()
        region = reshaped_like(self._next_region(like.nbytes), like)
        for holder in holders:
            self.meet_node()  # all have read the one before
            with self.transferring():
                if holder == self.rank:
                    region[...] = next(mine)
                self.meet_node()
                if self.nodes > 1:
                    self.pass_down(region, self.node_of[holder])
            yield region

    def lent(self, array: NDArray) -> bool:
        """Whether `array` is in memory of `broadcast`, which the next round reuses."""
        memories: list[NDArray] = list(self._broadcasts)
        if not self.is_server:
            memories += [formed for mean in self._means for formed in mean.formed]
        return any(offset_in(array, memory) is not None for memory in memories)

    def shared_mean(self, rows: int, columns: int) -> SharedMean:
        """An empty sum for means of this shape, for use in this round."""
        while True:
            if self._means_used == len(self._means):
                self.meet()  # before a call of MPI that all ranks of a node make together
                self._means.append(SharedMean(self, rows, columns))
            mean = self._means[self._means_used]
            self._means_used += 1
            if mean.suits(rows, columns):
                mean.clear()
                return mean

    def exchange(self, outgoing: Sequence[tuple[int, NDArray]], incoming: Sequence[tuple[int, NDArray]]) -> None:
        """Send each (rank, contiguous array), and receive into each (rank, contiguous array).

        The order matters per pair.
        """
        self.settle()
        with self.transferring():
            requests = [self.comm.Irecv(part, source) for source, array in incoming for part in chunks(array)]
            requests += [self.comm.Isend(part, target) for target, array in outgoing for part in chunks(array)]
            for request in requests:
                self.waiting.poll(request.Test)

    def check_room(self, broadcast: int, summed: int) -> None:
        """Check that every node has enough memory for a round; a collective.

        Args:
            broadcast: total size of all vectors that rank 0 broadcasts in the round.
            summed: total size of all vectors that are summed over the ranks.

        Raises:
            BadInput: the shared memory of some node is too small; on every rank alike.
        """
        ranks = self.node.Get_size()
        needed = 4 * broadcast + (8 * ranks + 4 * RESULTS) * summed
        needed += min(8 * summed, INBOX_BYTES) if self.nodes > 1 else 0
        needed += min(needed, ranks * MPI_FOR_A_RANK)
        with self.agreed():
            if self.leads and ranks > 1 and needed > room():
                raise TooLittleMemory.here(needed)

    def _place_of(self, vector: NDArray) -> tuple[int, int, int] | None:
        """The number of the mean in whose memory `vector` is, and the offset in bytes."""
        for i, mean in enumerate(self._means):
            for j, formed in enumerate(mean.formed):
                if (offset := offset_in(vector, formed)) is not None:
                    return i, j, offset
        return None

    def _next_region(self, size: int) -> NDArray[np.uint8]:
        number = self._broadcasts_used
        self._broadcasts_used += 1
        if number == len(self._broadcasts) or len(self._broadcasts[number]) < size:
            self._broadcasts[number : number + 1] = self.allocate(size, np.uint8, number=1)
        return self._broadcasts[number]


def mpi_version() -> str:
    """The MPI library's name and version, on one line."""
    return MPI.Get_library_version().splitlines()[0].strip("\0 \t").replace("\t", " ")
