"""Federated averaging.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data. AISTATS 2017. https://arxiv.org/abs/1602.05629
"""

from __future__ import annotations

from fedmpi.algorithms.base import Algorithm
from fedmpi.typing import Cohort, Federation


class FedAvg(Algorithm):
    """Weighted average of locally trained models (McMahan et al., 2017)."""

    takes_server_optimizer = True
    averages_models = takes_privacy = True

    @property
    def takes_held_out(self) -> bool:
        # A subclass's loss or direction may need vectors that only its round provides.
        return type(self).loss is FedAvg.loss and not self.changes_direction

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = self.train(fed, block, start, received=start)
            mean.add(local.weights, block)
        self.server_step(fed, mean.reduce(empty=self.weights))
