"""FedSAM and FedASAM: sharpness-aware local steps.

Qu, Li, Duan, Liu, Tang, Lu: Generalized Federated Learning via Sharpness Aware Minimization. ICML 2022.
https://arxiv.org/abs/2206.02618

Caldarola, Caputo, Ciccone: Improving Generalization in Federated Learning by Seeking Flat Minima. ECCV 2022.
https://arxiv.org/abs/2203.11834
"""

from __future__ import annotations

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.typing import Block, Federation, Tensor


@with_options
class FedSAM(FedAvg):
    """FedAvg whose clients seek flat minima (Qu et al., 2022; Caldarola et al., 2022).

    A step from w follows the gradient that the same batch has at w + e, where e = rho g / |g| points up the slope at
    w. With `adaptive` (FedASAM) it is e = rho T^2 g / |T g|, where T is |w| + eta for tensors named weight, and 1 for
    all others. A step costs two gradients.

    Args:
        rho: length of e, the step to the point at which the gradient is taken; 0 is FedAvg.
        adaptive: scale e by the weights, which is FedASAM. Its authors use rho 0.7.
        eta: smallest scale of a weight under adaptive.
    """

    rho: NonNegativeFloat = 0.05
    adaptive: bool = False
    eta: NonNegativeFloat = 0.2

    direction_is_elementwise = False

    @property
    def changes_direction(self) -> bool:
        return self.rho > 0

    @property
    def takes_held_out(self) -> bool:
        return True

    @property
    def step_cost(self) -> float:
        return 2.0 if self.rho else 1.0

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        entries = [entry for entry in fed.layout.entries if entry.is_parameter]
        self.scaled = [entry.columns for entry in entries if "weight" in entry.name] if self.adaptive else []

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        if self.rho:
            gradient = block.gradient(self.ascent(gradient, weights).add_(weights))
        return super().direction(gradient, weights, start, block)

    def ascent(self, gradient: Tensor, weights: Tensor) -> Tensor:
        """[K, d]: e, which is 0 where the gradient of a client is 0."""
        scale = torch.ones_like(weights) if self.scaled else None
        for columns in self.scaled:
            assert scale is not None
            scale[:, columns] = weights[:, columns].abs() + self.eta
        scaled = gradient if scale is None else scale * gradient
        norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        length = torch.where(norm == 0, 0.0, self.rho / norm)
        return scaled * length if scale is None else scale.mul_(scaled).mul_(length)
