"""FedExP.

Jhunjhunwala, Wang, Joshi: FedExP: Speeding Up Federated Averaging via Extrapolation. ICLR 2023.
https://arxiv.org/abs/2301.09604
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import PositiveFloat, UpToOne
from fedmpi.typing import Cohort, Federation, Tensor


@with_options
class FedExP(FedAvg):
    """FedAvg whose server step is longer the more the clients' changes differ (Jhunjhunwala et al., 2023).

    w += eta mean_k (w_k - w), with eta = max(1, sum_k p_k |w_k - w|^2 / (2 (|mean_k (w_k - w)|^2 + epsilon))). Here
    p_k are the clients' weights in the mean. Only parameters are extrapolated; running statistics are averaged. The
    column `extrapolation` is eta. Each client also sends the length of its change (column `change`, squared); these 8
    bytes are not counted. Near a fixed point of FedAvg the mean change tends to 0, so that epsilon alone bounds eta.
    It should not be small compared with the clients' |w_k - w|^2.

    Args:
        epsilon: smallest denominator of eta; a small value allows long steps.
        epsilon_decay: factor of epsilon per round; the square of the learning rate's factor, in the authors' code.
        average: whether the model half-way between the last two is evaluated, as in the paper, because extrapolated
            models oscillate; else the last one. The results file has both of the last two.
    """

    epsilon: PositiveFloat = 1e-3
    epsilon_decay: UpToOne = 1.0
    average: bool = True

    server_state = ("weights", "previous")
    client_metrics = ("change",)
    takes_server_optimizer = False
    takes_privacy = False  # lengths of changes are sent as well

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.previous = self.weights

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained = slice(0, fed.layout.parameters)
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self)
            mean.add(local.weights, block)
            changes = (local.weights - start)[:, trained]
            # One after another and in float64, because a client's bits must not depend on the other clients.
            fed.record(block, change=torch.stack([change.double().square().sum() for change in changes]))
        left, lengths = fed.undiverged(cohort), fed.gather_records()["change"]
        result = mean.reduce(empty=self.weights)
        self.previous, change = self.weights, (result - self.weights)[trained]
        if fed.is_server:
            eta = self.extrapolation(fed.round, left.weights, lengths[np.isin(cohort.clients, left.clients)], change)
            fed.log(extrapolation=eta)
            if eta > 1:
                result[trained] = self.weights[trained] + eta * change
        self.weights = result

    def extrapolation(
        self, round: int, weights: NDArray[np.float64], lengths: NDArray[np.float64], change: Tensor
    ) -> float:
        """eta, from weights [m] that sum to 1, squared lengths [m] of the clients' changes, and their mean [d]."""
        epsilon = self.epsilon * self.epsilon_decay ** (round - 1)
        own = float(change.double().square().sum())
        return max(1.0, math.fsum(weights * lengths) / (2 * (own + epsilon)))

    def evaluate(self, fed: Federation) -> None:
        """Evaluate the half-way model, with the last running statistics."""
        measured = self.weights.clone()
        if self.average:
            measured[: fed.layout.parameters].add_(self.previous[: fed.layout.parameters]).div_(2)
        fed.report(fed.evaluate(measured))
