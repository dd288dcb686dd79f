"""A method of your own, with state that clients keep: each corrects its steps by its last change.

    python -m fedmpi --algorithm examples.own_method.Steady --algorithm.pull 0.2 --rounds 5 --output runs/steady.h5

Run it from the folder in which `examples` lies, or put that folder on PYTHONPATH.
"""

from __future__ import annotations

import torch

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.typing import Block, Cohort, Federation, Tensor


@with_options
class Steady(FedAvg):
    """FedAvg whose clients lean towards the change that they made when they took part last.

    Args:
        pull: weight of the last change; 0 is FedAvg.
    """

    pull: NonNegativeFloat = 0.1

    def setup(self, fed: Federation) -> None:
        """Give every client a vector [d] of zeros, as long as the trained parameters."""
        super().setup(fed)
        self.last = fed.client_state("last change", torch.zeros(fed.layout.parameters))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        """One round: the server's pseudo-code, which runs on every rank."""
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            last = self.last[block]  # [K, d]
            trained = fed.train(block, start, self, last=last).weights  # [K, P]
            mean.add(trained, block)
            self.last[block] = (trained - start)[:, : fed.layout.parameters]
        self.server_step(fed, mean.reduce(empty=self.weights))

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        """[K, d] what the local optimizer steps along: it goes downhill, so the last change is subtracted."""
        return gradient - self.pull * block["last"]
