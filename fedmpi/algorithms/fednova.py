"""FedNova.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.
NeurIPS 2020. https://arxiv.org/abs/2007.07481
"""

from __future__ import annotations

import math

import numpy as np

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.proximal import Proximal
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.typing import Cohort, Federation


@with_options
class FedNova(Proximal, FedAvg):
    """FedAvg of clients that do different numbers of steps, each counted by its mean step (Wang et al., 2020).

    w += tau sum_k p_k (w_k - w) / a_k, where a_k is what the gradients count in the client's way, the number of its
    steps unless there is momentum or a pull, and tau = sum_k p_k a_k. So equal work is FedAvg's, or FedProx's. Of
    weight decay and clipping a_k takes no account.

    Args:
        mu: strength of a proximal pull towards the global model, as in FedProx.
    """

    mu: NonNegativeFloat = 0.0

    accepts_partial_work = True
    takes_privacy = False  # numbers of steps are sent as well

    def setup(self, fed: Federation) -> None:
        require(fed.local.optimizer == "sgd", "--local.optimizer", fed.local.optimizer, "sgd with FedNova")
        super().setup(fed)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained, pull = slice(0, fed.layout.parameters), fed.lr * self.mu
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self)
            update = local.weights.clone()
            update[:, trained].sub_(start[trained])
            update[:, trained].div_(start.new_tensor(fed.local.normaliser(local.steps, pull))[:, None])
            mean.add(update, block)
        left, steps = fed.undiverged(cohort), fed.gather_records()["steps"].astype(int)
        counts = fed.local.normaliser(steps[np.isin(cohort.clients, left.clients)], pull)
        result = mean.reduce()
        result[trained] = self.weights[trained] + math.fsum(left.weights * counts) * result[trained]
        self.server_step(fed, result)
