"""MoFedSAM: sharpness-aware local steps with the momentum of all clients.

Qu, Li, Duan, Liu, Tang, Lu: Generalized Federated Learning via Sharpness Aware Minimization. ICML 2022.
https://arxiv.org/abs/2206.02618
"""

from __future__ import annotations

from fedmpi.algorithms.fedcm import FedCM
from fedmpi.algorithms.fedsam import FedSAM
from fedmpi.options import with_options


@with_options
class MoFedSAM(FedSAM, FedCM):
    """FedSAM whose steps are mixed with the direction of the last round, as in FedCM (Qu et al., 2022).

    A step from w follows alpha g' + (1 - alpha) D. Here g' is the gradient that the batch has at w + e, with FedSAM's
    e, and D is FedCM's momentum. With rho 0 it is FedCM.

    Args:
        alpha: weight of the gradient; 1 is FedSAM.
        rho: length of e, the step to the point at which the gradient is taken.
        adaptive: scale e by the weights, as in FedASAM.
        eta: smallest scale of a weight under adaptive.
    """

    @property
    def changes_direction(self) -> bool:
        return True

    @property
    def takes_held_out(self) -> bool:
        return False
