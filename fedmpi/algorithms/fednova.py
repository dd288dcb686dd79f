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
    """FedAvg with normalised updates, for clients that do different numbers of steps (Wang et al., 2020).

    w += tau sum_k p_k (w_k - w) / a_k, with tau = sum_k p_k a_k. The normalising constant a_k is the sum of the
    coefficients with which the gradients enter the client's update; without momentum and proximal term it is the
    number of steps. If all clients do equal work, this is FedAvg, or FedProx. a_k does not account for weight decay
    and clipping.

    Args:
        mu: strength of a proximal pull towards the global model, as in FedProx.
    """

    mu: NonNegativeFloat = 0.0

    accepts_partial_work = True
    takes_rate_per_step = False
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
