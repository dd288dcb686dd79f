"""Methods for tests, used by import path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from fedmpi.federation import Federation
    from fedmpi.scheduling import Cohort


class Remembering(FedAvg):
    """Each client starts half-way between the global model and its own last one, and counts its rounds."""

    client_metrics = ("visits",)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.last = fed.client_state("last", fed.initial_weights())
        self.visits = fed.client_state("visits", torch.zeros(1))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort)
        for block in fed.my_clients(cohort):
            local = fed.train(block, (start + self.last[block]) / 2, self)
            mean.add(local.weights, block)
            self.last[block] = local.weights
            self.visits[block] = self.visits[block] + 1
            fed.record(block, visits=self.visits[block][:, 0])
        self.weights = mean.reduce(empty=self.weights)


class EvenOnly(FedAvg):
    """Adds only the updates of even-numbered clients, as if the others had been lost."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self)
            if block.clients[0] % 2 == 0:
                mean.add(local.weights, block)
        self.weights = mean.reduce(empty=self.weights)


class Idle(Algorithm):
    """Trains nobody."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.weights = fed.weighted_mean(cohort).reduce(empty=self.weights)
