"""FedCM.

Xu, Wang, Wang, Yao: FedCM: Federated Learning with Client-level Momentum. 2021. https://arxiv.org/abs/2106.10874
"""

from __future__ import annotations

import math

import numpy as np

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.ranges import UpToOne
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


@with_options
class FedCM(FedAvg):
    """FedAvg whose local steps are mixed with the direction of the last round (Xu et al., 2021).

    The server sends its model w and a momentum D, which is 0 in the first round. A client's step follows
    alpha g + (1 - alpha) D with the gradient g. The next momentum is D = (w - mean_k w_k) / (lr tau). Here lr is the
    learning rate of the round, and tau the mean number of the clients' steps. So all clients have the same momentum,
    and keep nothing. Gradients are clipped after mixing, and D contains the weight decay of earlier rounds.

    Args:
        alpha: weight of the gradient; 1 is FedAvg.
    """

    alpha: UpToOne = 0.1

    server_state = ("weights", "momentum")
    hidden_state = ("momentum",)
    weighting = "uniform"
    direction_is_elementwise = True
    takes_rate_per_step = False
    takes_privacy = False  # numbers of steps are sent as well

    def setup(self, fed: Federation) -> None:
        name = type(self).__name__
        require(fed.local.optimizer == "sgd", "--local.optimizer", fed.local.optimizer, f"sgd with {name}")
        require(not fed.local.momentum, "--local.momentum", fed.local.momentum, f"0 with {name}")
        super().setup(fed)
        self.momentum = self.weights.new_zeros(fed.layout.parameters)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        return [slice(layout.size), slice(layout.parameters)], [slice(layout.size)]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start, momentum = fed.broadcast(self.weights), fed.broadcast(self.momentum)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self, momentum=momentum)
            mean.add(local.weights, block)
        left, steps = fed.undiverged(cohort), fed.gather_records()["steps"]
        tau = math.fsum(left.weights * steps[np.isin(cohort.clients, left.clients)])
        result = mean.reduce(empty=self.weights)
        self.momentum = (self.weights - result)[: fed.layout.parameters].div_(fed.lr * tau)
        self.server_step(fed, result)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        if self.alpha == 1:
            return gradient
        return gradient.mul_(self.alpha).add_(block["momentum"], alpha=1 - self.alpha)
