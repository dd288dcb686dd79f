"""Functions of vectors that are distributed over ranks, coordinate by coordinate.

Each rank keeps the vectors of the clients that it trained. For a function of all clients' values of a coordinate, the
matrix of vectors is transposed: in each turn, every rank receives one block of coordinates of all vectors, and sends
its result to rank 0. So rank 0 receives one vector in total, and no rank ever holds all of them. The blocks depend
only on the number of vectors, so sums over coordinates are bit-identical on any number of ranks. Short vectors, for
example of a layer, may also be collected at rank 0. Whole vectors come one after the other, to rank 0 (`each`) or to
every rank (`everywhere`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.errors import BadInput
from fedmpi.mpi.world import World

# Size of other ranks' vectors that a rank holds at a time (4 MiB); largest and smallest number of columns.
BLOCK_ELEMENTS, MOST_COLUMNS, FEWEST_COLUMNS = 1 << 20, 1 << 16, 1 << 10


class Rows:
    """One vector per client.

    Args:
        world: the ranks.
        clients: [m] clients that may have vectors, in the order of the rows.
        size: n, the length of a vector.

    Attributes:
        present: [k] int64, positions in `clients` of those with vectors; known after `close`.
        rejected: number of vectors that were not finite; known after `close`.
    """

    def __init__(self, world: World, clients: NDArray[np.int64], size: int) -> None:
        self._world = world
        self._size = size
        self._positions = {client: position for position, client in enumerate(clients.tolist())}
        self._mine: dict[int, NDArray[np.float32]] = {}
        self._clients = clients
        # The rank that holds a vector, plus 1; -1: the vector is not finite; 0: there is none.
        # Beside it, how many vectors there are of the client.
        self._told = np.zeros((2, len(clients)))
        self._holders, self._counts = self._told

    def put(self, client: int, vector: NDArray[np.float32]) -> None:
        """Keep a copy of a client's vector [n], unless it is not finite."""
        position, is_finite = self._positions[client], bool(np.isfinite(vector).all())
        self._holders[position] = self._world.rank + 1 if is_finite else -1
        self._counts[position] += 1
        if is_finite:
            self._mine[position] = vector.copy()

    def close(self) -> None:
        """Finish the collection: all ranks learn which rank holds which vector; a collective.

        Raises:
            BadInput: a client has several vectors; on every rank alike.
        """
        self._world.sum(self._told)
        for client in self._clients[self._counts > 1][:1].tolist():
            with self._world.agreed():
                raise BadInput(f"fed.stack: client {client} was added twice: must be one vector of each client")
        self.present = np.flatnonzero(self._holders > 0)
        self.rejected = int((self._holders < 0).sum())

    def mine(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Positions and vectors [n] on this rank."""
        yield from sorted(self._mine.items())

    def collect(self) -> NDArray[np.float32]:
        """[m, n] at rank 0 (no rows on other ranks): all vectors, NaN for missing ones; a collective."""
        world, holders = self._world, self._holders.astype(int) - 1
        result = np.full((len(holders) if world.is_server else 0, self._size), np.nan, dtype=np.float32)
        if world.is_server:
            for position, vector in self.mine():
                result[position] = vector
            others = [position for position in self.present.tolist() if holders[position]]
            world.exchange([], [(holders[position], result[position]) for position in others])
        else:
            world.exchange([(0, vector) for _, vector in self.mine()], [])
        return result

    def each(self, order: Sequence[int]) -> Iterator[NDArray[np.float32] | None]:
        """[n] the vectors at these positions, one after the other; None where there is none. A collective.

        At rank 0 a vector is valid until the next one is taken. What other ranks get, which must take all of them as
        well, is undefined.
        """
        world, holders, present = self._world, self._holders.astype(int) - 1, set(self.present.tolist())
        if not world.is_server:
            world.exchange([(0, self._mine[position]) for position in order if position in self._mine], [])
        received = np.empty(self._size if world.is_server else 0, dtype=np.float32)
        for position in order:
            if world.is_server and position in present and holders[position]:
                world.exchange([], [(holders[position], received)])
            yield self._mine.get(position, received) if position in present else None

    def everywhere(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The position and the vector [n] of each client that is present, in order, on every rank; a collective.

        A vector is read-only, and valid until the next one is taken. All ranks must take all of them.
        """
        holders = self._holders[self.present].astype(int) - 1
        mine = (vector for _, vector in self.mine())
        like = np.broadcast_to(np.float32(0), self._size)
        yield from zip(self.present.tolist(), self._world.relay(holders.tolist(), mine, like), strict=True)

    def combine(self, rule: Callable[[NDArray[np.float32]], NDArray]) -> NDArray[np.float32]:
        """[n] at rank 0 (undefined on other ranks): a rule applied to the values of each coordinate; a collective.

        Args:
            rule: [k, c] the values of c coordinates -> [c]. It may overwrite them.
        """
        result = np.empty(self._size if self._world.is_server else 0, dtype=np.float32)
        for columns, block in self._turns(self._size):
            self._to_server(rule(block).astype(np.float32, copy=False), [result[part] for part in columns])
        return result

    def pairwise(
        self, rule: Callable[[Tensor], Tensor], center: Callable[[slice], NDArray[np.float32]], size: int
    ) -> NDArray[np.float64]:
        """[k, k] a sum over coordinates for all pairs of vectors, on every rank; a collective.

        Args:
            rule: [k, c] float64, differences of the vectors from their centers in c coordinates -> [k, k], their part
                of the sum.
            center: columns -> [c] or [k, c], subtracted from the vectors for accuracy.
            size: number of first coordinates that are summed.
        """
        count = len(self.present)
        total = np.zeros((count, count))
        for columns, block in self._turns(size):
            shifted = torch.from_numpy(block).double()
            if self._world.rank < len(columns):
                shifted -= torch.from_numpy(center(columns[self._world.rank]))
            parts = np.empty((len(columns), count, count))
            self._to_server(rule(shifted).numpy(), list(parts))
            for part in parts if self._world.is_server else ():
                total += part
        return self._world.broadcast(total)

    def _turns(self, size: int) -> Iterator[tuple[list[slice], NDArray[np.float32]]]:
        """The columns of each rank in this turn (at most a block), and this rank's columns of all rows [k, c].

        Args:
            size: number of first columns that are used.
        """
        world, rows = self._world, self.present.tolist()
        holders = self._holders[rows].astype(int) - 1
        width = min(max(BLOCK_ELEMENTS // max(len(rows), 1), FEWEST_COLUMNS), MOST_COLUMNS)
        blocks = [slice(first, min(first + width, size)) for first in range(0, size, width)]
        for first in range(0, len(blocks), world.size):
            columns = blocks[first : first + world.size]
            own = columns[world.rank] if world.rank < len(columns) else slice(0, 0)
            block = np.empty((len(rows), own.stop - own.start), dtype=np.float32)
            incoming = []
            for values, row, holder in zip(block, rows, holders.tolist(), strict=True):
                if holder == world.rank:
                    values[:] = self._mine[row][own]
                elif len(values):
                    incoming.append((holder, values))
            world.exchange(
                [
                    (rank, self._mine[row][part])
                    for rank, part in enumerate(columns)
                    for row in rows
                    if rank != world.rank and row in self._mine
                ],
                incoming,
            )
            yield columns, block

    def _to_server(self, value: NDArray, places: list[NDArray]) -> None:
        """Send each rank's result to its place at rank 0."""
        world = self._world
        if world.is_server:
            places[0][...] = value
            world.exchange([], list(enumerate(places))[1:])
        elif world.rank < len(places):
            world.exchange([(0, np.ascontiguousarray(value))], [])
