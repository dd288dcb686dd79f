"""The vectors of a round's clients, kept apart, for rules that need all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.aggregation import WeightedMean
from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World
from fedmpi.training.block import Block

if TYPE_CHECKING:
    from fedmpi.channel import Channel
    from fedmpi.scheduling import Cohort


class Stack:
    """Collects the clients' vectors of a round, each on the rank that trained it, then looks at all of them.

    All clients count alike. A vector that is not finite is rejected. The order of use is that of the methods here;
    all but `add` are collectives.

    Args:
        world: the ranks.
        cohort: whose vectors are collected.
        start: [P], what the clients received.
        parameters: elements [0, parameters) of a vector are parameters, the others floating-point buffers.
        channel: through which the vectors come.

    Attributes:
        present: [k] int64, positions in the cohort of those whose vectors arrived; known after `close`.
        rejected: how many vectors were not finite; likewise.
    """

    def __init__(self, world: World, cohort: Cohort, start: Tensor, parameters: int, channel: Channel) -> None:
        self._world = world
        self._clients = cohort.clients
        self._start = start.cpu()
        self._parameters = parameters
        self._channel = channel
        self._rows = Rows(world, cohort.clients, len(start))

    def add(self, vectors: Tensor, block: Block) -> None:
        """Add a copy of `vectors` [K, P], a row of each of the block's clients."""
        arrived, block, _ = self._channel.send(vectors, block, np.zeros(len(vectors), dtype=np.int64))
        self._keep(arrived, block)

    def close(self) -> None:
        """No more vectors come."""
        for vectors, block, _ in self._channel.late():
            self._keep(vectors, block)
        self._rows.close()
        self.present, self.rejected = self._rows.present, self._rows.rejected

    def combine(self, rule: Callable[[NDArray[np.float32]], NDArray]) -> Tensor:
        """[P] at the server, on the meta device elsewhere: what a rule makes of each coordinate by itself.

        Args:
            rule: [k, c], the values of c coordinates -> [c]. It may overwrite them.
        """
        result = self._rows.combine(rule)
        return torch.from_numpy(result) if self._world.is_server else torch.empty(len(self._start), device="meta")

    def distances(self) -> NDArray[np.float64]:
        """[k, k] squared Euclidean distances of those that are present, with all their elements; on every rank."""
        return self._rows.distances(self._start.numpy())

    def mean(self, chosen: NDArray[np.int64]) -> Tensor:
        """[P] at the server, on the meta device elsewhere: the mean of those at these positions in the cohort.

        Raises:
            Diverged: one of them is too large to be summed exactly.
        """
        mean = WeightedMean(self._world, self._parameters, len(self._start), len(chosen), None, torch.device("cpu"))
        one = np.ones(1, dtype=np.int64)
        for position, vector in self._rows.mine():
            if position in chosen:
                mean.add(torch.from_numpy(vector)[None], Block(self._clients[[position]], one, one))
        return mean.reduce()

    def _keep(self, vectors: Tensor, block: Block) -> None:
        for client, mass, vector in zip(block.clients.tolist(), block.mass.tolist(), vectors, strict=True):
            if mass:
                self._rows.put(client, vector.detach().cpu().numpy())
