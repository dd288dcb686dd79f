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
from fedmpi.typing import Federation, Tensor


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

        def at_present(models: Tensor, clients: NDArray[np.int64], columns: slice) -> Tensor:
            """Columns of arrived models [k, c], as if their changes had been made to the present model."""
            some = [places[client] for client in clients.tolist()]
            stale = arrivals.staleness[some] > 0
            if not stale.any():
                return models
            now, is_parameter = present[columns], columns.start < fed.layout.parameters
            base = rows(starts[:, columns], which[some]) if is_parameter else now
            factor = torch.from_numpy(scale[some]).to(models)[:, None]
            moved = (models - base).mul_(factor).add_(now)
            is_stale = torch.from_numpy(stale).to(models.device)[:, None]
            return moved if stale.all() else torch.where(is_stale, moved, models)

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
