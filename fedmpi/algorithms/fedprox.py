"""FedProx.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks. MLSys 2020.
https://arxiv.org/abs/1812.06127
"""

from __future__ import annotations

from typing import Literal

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.proximal import Proximal
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.typing import Block, Tensor


@with_options
class FedProx(Proximal, FedAvg):
    """FedAvg with a proximal pull towards the global model (Li et al., 2020).

    Args:
        mu: strength of the pull; 0 is FedAvg.
        anchor: target of the pull: the global model w_t; or zero, as in the code released with FedFTG (Zhang et al.,
            2022), which only adds mu to the weight decay.
    """

    mu: NonNegativeFloat = 0.01
    anchor: Literal["global", "zero"] = "global"

    accepts_partial_work = True

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return super().direction(gradient, weights, start if self.anchor == "global" else start.new_zeros(()), block)
