"""FedProx.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020.
https://arxiv.org/abs/1812.06127
"""

from typing import TYPE_CHECKING

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fedmpi.training.block import Block


class FedProx(FedAvg):
    """FedAvg with a proximal pull towards the global model (Li et al., 2020).

    Each client minimises F_k(w) + mu/2 |w - w_t|^2, the second term over the trained parameters only.

    Args:
        mu: strength of the pull; 0 is FedAvg.
    """

    direction_is_elementwise = True
    accepts_partial_work = True

    def __init__(self, mu: float = 0.01) -> None:
        require(0 <= mu < float("inf"), "mu", mu, "at least 0")
        self.mu = mu

    def direction(self, gradient: "Tensor", weights: "Tensor", start: "Tensor", block: "Block") -> "Tensor":
        return gradient + self.mu * (weights - start) if self.mu else gradient
