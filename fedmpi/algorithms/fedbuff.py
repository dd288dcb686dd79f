"""Buffered asynchronous aggregation.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous Aggregation.
AISTATS 2022. https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.asynchronous import Asynchronous
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.policies.timeline import Arrivals
from fedmpi.typing import Block, Federation, Tensor


@with_options
class FedBuff(Asynchronous):
    """The server updates its model when a buffer of `--cohort` updates is full (Nguyen et al., 2022).

    The update is the mean of the clients' changes, each divided by sqrt(1 + staleness), and the server optimizer
    applies it. Staleness is the number of server updates since the client started. So the mean step is smaller than
    that of FedAvg; a larger `--server_optimizer.lr` makes up for it. Running statistics of batch normalisation move
    towards the clients' by the same factor. A client in the buffer starts again only after the update, so a buffer
    has every client once. With as many clients in flight as in a buffer, and equal speeds, it is FedAvg bit for bit.
    """

    def buffer(self, cohort: int) -> int:
        return cohort

    def update(self, fed: Federation, arrivals: Arrivals, formed: list[int]) -> None:
        starts, which = self.starts(fed, arrivals)
        present = fed.broadcast(self.weights, received=0)
        scale = discount(arrivals.staleness)
        places = {client: place for place, client in enumerate(arrivals.clients.tolist())}
        parameters = fed.layout.parameters

        def at_present(vectors: Tensor, block: Block) -> Tensor:
            """The arrived models [K, P], as if their changes had been made to the present model."""
            some = [places[client] for client in block.clients.tolist()]
            if not arrivals.staleness[some].any():
                return vectors
            factor = torch.from_numpy(scale[some]).to(vectors)[:, None]
            moved = present + factor * (vectors - present)
            start = starts[torch.from_numpy(which[some]).to(vectors.device), :parameters]
            moved[:, :parameters] = present[:parameters] + factor * (vectors[:, :parameters] - start)
            is_fresh = torch.from_numpy(arrivals.staleness[some] == 0).to(vectors.device)[:, None]
            return torch.where(is_fresh, vectors, moved)

        mean = fed.weighted_mean(arrivals, starts, arrive=at_present)
        for block in fed.my_clients(arrivals):
            own = which[[places[client] for client in block.clients.tolist()]]
            start = starts[torch.from_numpy(own).to(starts.device)]
            local = self.train(fed, block, start, received=start)
            mean.add(local.weights, block, own)
        self.server_step(fed, mean.reduce(empty=self.weights))
        for version in formed:
            self.keep(version)


def discount(staleness: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / sqrt(1 + staleness)"""
    return 1 / np.sqrt(1.0 + staleness)
