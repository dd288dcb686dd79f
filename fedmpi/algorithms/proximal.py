"""Base of the methods with a proximal pull towards the received model."""

from __future__ import annotations

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import require
from fedmpi.typing import Block, Federation, Tensor


class Proximal(Algorithm):
    """A proximal pull: each client minimises F_k(w) + mu/2 |w - w_t|^2.

    The second term covers the trained parameters only, and w_t is the model that the client received.

    Attributes:
        mu: strength of the pull; an option of each subclass.
    """

    direction_is_elementwise = True

    mu: float

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        local = fed.local
        if local.optimizer == "sgd":
            # Above this limit, steps along the pull alone diverge (with momentum: Polyak, 1964).
            limit = 2 * (1 + local.momentum) / local.lr
            require(self.mu < limit, "mu", self.mu, f"below {limit:g}, for steps of --local.lr = {local.lr:g}")

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient.add_(weights - start, alpha=self.mu) if self.mu else gradient
