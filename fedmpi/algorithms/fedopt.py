"""Federated averaging with an optimizer at the server, under the names of the papers.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification. 2019.
https://arxiv.org/abs/1909.06335
Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization. ICLR 2021.
https://arxiv.org/abs/2003.00295

`--server_optimizer` combines the same optimizers with other methods.
"""

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.policies.server_optimizers import Adagrad, Adam, Momentum, Yogi
from fedmpi.ranges import BelowOne, PositiveFloat


class FedAvgM(FedAvg):
    """FedAvg with momentum at the server (Hsu et al., 2019).

    Args:
        lr: learning rate of the server.
        momentum: momentum factor.
        dampening: the mean update enters the momentum with factor 1 - dampening.
        nesterov: whether to use Nesterov momentum.
    """

    takes_server_optimizer = False  # it has one

    def __init__(
        self, lr: PositiveFloat = 1.0, momentum: BelowOne = 0.9, dampening: BelowOne = 0.0, nesterov: bool = False
    ) -> None:
        self.server_optimizer = Momentum(lr, momentum, dampening, nesterov)


class FedAdagrad(FedAvg):
    """FedAvg with Adagrad at the server (Reddi et al., 2021).

    Args:
        lr: learning rate of the server.
        beta1: decay of the first moment.
        tau: degree of adaptivity, added to the root of the second moment.
    """

    takes_server_optimizer = False  # it has one

    def __init__(self, lr: PositiveFloat = 0.01, beta1: BelowOne = 0.0, tau: PositiveFloat = 1e-3) -> None:
        self.server_optimizer = Adagrad(lr, beta1, tau)


class FedAdam(FedAvg):
    """FedAvg with Adam at the server (Reddi et al., 2021).

    Args:
        lr: learning rate of the server.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: degree of adaptivity, added to the root of the second moment.
    """

    takes_server_optimizer = False  # it has one

    def __init__(
        self, lr: PositiveFloat = 0.01, beta1: BelowOne = 0.9, beta2: BelowOne = 0.99, tau: PositiveFloat = 1e-3
    ) -> None:
        self.server_optimizer = Adam(lr, beta1, beta2, tau)


class FedYogi(FedAvg):
    """FedAvg with Yogi at the server (Reddi et al., 2021).

    Args:
        lr: learning rate of the server.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: degree of adaptivity, added to the root of the second moment.
    """

    takes_server_optimizer = False  # it has one

    def __init__(
        self, lr: PositiveFloat = 0.01, beta1: BelowOne = 0.9, beta2: BelowOne = 0.99, tau: PositiveFloat = 1e-3
    ) -> None:
        self.server_optimizer = Yogi(lr, beta1, beta2, tau)
