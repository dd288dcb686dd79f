"""FedProx.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020.
https://arxiv.org/abs/1812.06127
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fedmpi.federation.federation import Federation
    from fedmpi.training.block import Block


class Proximal(Algorithm):
    """What a method with a proximal pull has of its own: each client minimises F_k(w) + mu/2 |w - w_t|^2.

    The second term is over the trained parameters only, w_t is the model that the client received.

    Args:
        mu: strength of the pull.
    """

    direction_is_elementwise = True

    @abstractmethod
    def __init__(self, mu: float) -> None:
        require(0 <= mu < float("inf"), "mu", mu, "at least 0")
        self.mu = mu

    def setup(self, fed: "Federation") -> None:
        super().setup(fed)
        local = fed.local
        if local.optimizer == "sgd":
            # Beyond it, steps along the pull alone lead further and further away (with momentum: Polyak, 1964).
            limit = 2 * (1 + local.momentum) / local.lr
            require(self.mu < limit, "mu", self.mu, f"below {limit:g}, for steps of --local.lr = {local.lr:g}")

    def direction(self, gradient: "Tensor", weights: "Tensor", start: "Tensor", block: "Block") -> "Tensor":
        return gradient.add_(weights - start, alpha=self.mu) if self.mu else gradient


class FedProx(Proximal, FedAvg):
    """FedAvg with a proximal pull towards the global model (Li et al., 2020).

    Args:
        mu: strength of the pull; 0 is FedAvg.
        anchor: where to: the global model w_t; or zero, as in the code released with FedFTG (Zhang et al., 2022),
            which is no more than mu added to the weight decay.
    """

    accepts_partial_work = True

    def __init__(self, mu: float = 0.01, anchor: Literal["global", "zero"] = "global") -> None:
        super().__init__(mu)
        self.anchor = anchor

    def direction(self, gradient: "Tensor", weights: "Tensor", start: "Tensor", block: "Block") -> "Tensor":
        return super().direction(gradient, weights, start if self.anchor == "global" else start.new_zeros(()), block)
