"""Buffered asynchronous aggregation.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous Aggregation.
AISTATS 2022. https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.asynchronous import Asynchronous, rows
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.policies.timeline import Arrivals
from fedmpi.typing import Block, Federation, Tensor

#: So many parameters at a time are moved, because they stay in the processor's cache.
PART = 1 << 16


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
        moved_models = starts.new_empty(fed.at_clients.at_once, fed.layout.size)
        places = {client: place for place, client in enumerate(arrivals.clients.tolist())}
        parameters = fed.layout.parameters

        def at_present(vectors: Tensor, block: Block) -> Tensor:
            """The arrived models [K, P], as if their changes had been made to the present model."""
            some = [places[client] for client in block.clients.tolist()]
            stale = np.flatnonzero(arrivals.staleness[some])
            if not len(stale):
                return vectors
            moved = moved_models[: len(vectors)]
            start = rows(starts, which[some])
            factor = torch.from_numpy(scale[some]).to(vectors)[:, None]
            for first in range(0, parameters, PART):
                part = slice(first, min(first + PART, parameters))
                torch.sub(vectors[:, part], start[:, part], out=moved[:, part])
                moved[:, part].mul_(factor).add_(present[part])
            others = slice(parameters, None)
            torch.sub(vectors[:, others], present[others], out=moved[:, others])
            moved[:, others].mul_(factor).add_(present[others])
            if len(stale) < len(some):
                is_fresh = torch.from_numpy(arrivals.staleness[some] == 0).to(vectors.device)
                moved[is_fresh] = vectors[is_fresh]
            return moved

        mean = fed.weighted_mean(arrivals, starts, arrive=at_present)
        for block in fed.my_clients(arrivals):
            own = which[[places[client] for client in block.clients.tolist()]]
            start = rows(starts, own)
            local = self.train(fed, block, start, received=start)
            mean.add(local.weights, block, own)
        self.server_step(fed, mean.reduce(empty=self.weights))
        for version in formed:
            self.memory(version).copy_(self.weights)


def discount(staleness: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / sqrt(1 + staleness)"""
    return 1 / np.sqrt(1.0 + staleness)
