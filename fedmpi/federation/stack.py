"""The vectors of a round's clients, stored separately, for rules that need all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.federation.ledger import Ledger
from fedmpi.federation.mean import WeightedMean
from fedmpi.federation.uplink import Uplink
from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.training.block import Block


class Stack:
    """Collects the clients' vectors of a round, each on the rank that trained it, and applies rules to all of them.

    All clients have equal weights. A vector that is not finite is rejected. Call the methods in the order in which
    they are defined. All except `add` are collectives.

    Args:
        world: the ranks.
        cohort: the clients of the vectors.
        start: [P] or [groups, P], the received vectors.
        parameters: elements [0, parameters) of a vector are parameters, the others floating-point buffers.
        uplink: changes the vectors on their way.
        ledger: of the round.
        group: [m] the number of the start that each client received; None: there is one.

    Attributes:
        present: [k] int64, positions in the cohort of clients whose vectors arrived; known after `close`.
        rejected: number of vectors that were not finite; known after `close`.
    """

    def __init__(
        self,
        world: World,
        cohort: Cohort,
        start: Tensor,
        parameters: int,
        uplink: Uplink,
        ledger: Ledger,
        group: NDArray[np.int64] | None = None,
    ) -> None:
        self._world = world
        self._clients = cohort.clients
        self._start = start.cpu().numpy().reshape(-1, start.shape[-1])
        self._group = np.zeros(len(cohort), dtype=np.int64) if group is None else group
        self._size = start.shape[-1]
        self._parameters = parameters
        self._uplink = uplink
        self._ledger = ledger
        self._rows = Rows(world, cohort.clients, self._size)

    def add(self, vectors: Tensor, block: Block) -> None:
        """Add a copy of `vectors` [K, P], one row per client of the block; reject those of diverged clients."""
        block.check(vectors)
        if block.diverged:
            for client in block.diverged:
                self._rows.put(client, np.full(self._size, np.nan, dtype=np.float32))
            left = block.undiverged()
            vectors, block = vectors[left], block.rows(left)
        group = self._group[np.searchsorted(self._clients, block.clients)]
        arrived, block, _ = self._uplink.send(vectors, block, group)
        self._keep(arrived, block)

    def close(self) -> None:
        """Finish the collection."""
        for vectors, block, _ in self._uplink.late():
            self._keep(vectors, block)
        self._rows.close()
        self.present, self.rejected = self._rows.present, self._rows.rejected

    def each(self, order: Sequence[int]) -> Iterator[Tensor | None]:
        """[P] at the server (meta tensors on other ranks): the vectors at these positions, one after the other.

        None for a client whose vector is missing or was rejected. A vector is valid until the next one is taken. All
        ranks must take all of them.
        """
        for row in self._rows.each(order):
            if row is None:
                yield None
            else:
                yield torch.from_numpy(row) if self._world.is_server else torch.empty(self._size, device="meta")

    def everywhere(self, received: int) -> Iterator[tuple[int, Tensor]]:
        """The position in the cohort and the vector [P] of each client that is present, in order, on every rank.

        A vector is read-only, and valid until the next one is taken. All ranks must take all of them. It is in host
        memory.

        Args:
            received: how many numbers all clients together receive, of these vectors or of what is made of them.
        """
        self._ledger.bytes_down += received * torch.float32.itemsize
        for position, vector in self._rows.everywhere():
            yield position, torch.from_numpy(vector)

    def combine(self, rule: Callable[[NDArray[np.float32]], NDArray]) -> Tensor:
        """[P] at the server (a meta tensor on other ranks): a rule applied to each coordinate separately.

        Args:
            rule: [k, c], the values of c coordinates -> [c]. It may overwrite them.
        """
        result = self._rows.combine(rule)
        return torch.from_numpy(result) if self._world.is_server else torch.empty(self._size, device="meta")

    def distances(self) -> NDArray[np.float64]:
        """[k, k] squared Euclidean distances of the parameters of the clients that are present; on every rank.

        Running statistics have another scale, and would dominate the distance.
        """
        products = self.pairwise(inner_products)
        squares = products.diagonal()
        return np.maximum(squares[:, None] + squares - 2 * products, 0)

    def pairwise(self, rule: Callable[[Tensor], Tensor], parameters: int | None = None) -> NDArray[np.float64]:
        """[k, k] a rule applied to all pairs of changes of the clients that are present; on every rank.

        Args:
            rule: [k, c] float64, the changes of c parameters -> [k, k], their part of the sum over all parameters.
            parameters: number of first parameters that are used; None: all.
        """
        return self._rows.pairwise(rule, self._centers, parameters or self._parameters)

    def mean(self, chosen: NDArray[np.int64]) -> Tensor:
        """[P] at the server (a meta tensor on other ranks): the mean over these positions in the cohort."""
        everyone = np.arange(len(self._clients))
        return self.means(np.where(np.isin(everyone, chosen), 0, -1), np.ones_like(everyone), 1)[0]

    def means(
        self, group: NDArray[np.int64], mass: NDArray[np.int64], groups: int, empty: Tensor | None = None
    ) -> Tensor:
        """[groups, P] at the server (a meta tensor on other ranks): each group's mean over clients that are present.

        Args:
            group: [m] group of each client of the cohort; -1: none.
            mass: [m] weights.
            empty: [groups, P], the mean of a group without clients; default: zeros.
        """
        counted = self.present[group[self.present] >= 0]
        total, cpu = int(mass[counted].sum()), torch.device("cpu")
        mean = WeightedMean(self._world, self._parameters, self._size, total, groups, cpu)
        for position, vector in self._rows.mine():
            if group[position] >= 0:
                one = self._clients[[position]]
                mean.add(torch.from_numpy(vector)[None], Block(one, one, mass[[position]]), group[[position]])
        return mean.reduce(empty)

    def _centers(self, columns: slice) -> NDArray[np.float32]:
        """[k, c] the received vectors of the clients that are present."""
        return self._start[:, columns][self._group[self.present]]

    def _keep(self, vectors: Tensor, block: Block) -> None:
        for client, mass, vector in zip(block.clients.tolist(), block.mass.tolist(), vectors, strict=True):
            if mass:
                self._rows.put(client, vector.detach().cpu().numpy())


def inner_products(changes: Tensor) -> Tensor:
    """[k, k] of changes [k, c]."""
    return changes @ changes.T


def absolute_differences(changes: Tensor) -> Tensor:
    """[k, k], the sums over the elements of changes [k, c]."""
    return torch.cdist(changes, changes, p=1)
