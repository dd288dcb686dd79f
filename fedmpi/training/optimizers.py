"""Local optimizers on flat vectors: a step takes a few operations, whatever the number of tensors.

They are bit-identical to `torch.optim.SGD` and `torch.optim.Adam` (a test compares them). They save a Python loop
over tensors in every step, and a new optimizer object per client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

ALL = slice(None)


class Optimizer(ABC):
    """The optimizer of K clients.

    A step begins with `advance`; then `step` is called for all parameters or parts of them.

    Args:
        weight_decay: factor of the weights that are added to the gradient.
    """

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self.steps = 0

    def reset(self) -> None:
        """Reset momentum and moments: a client starts every round without them."""
        self.steps = 0

    def advance(self) -> None:
        """Begin the next step."""
        self.steps += 1

    def step(self, weights: Tensor, gradient: Tensor, lr: float, columns: slice = ALL) -> None:
        """Update `weights` [K, n] in place, columns of [K, d]; `gradient` [K, n] may be overwritten.

        K may decrease from step to step.
        """
        if self.weight_decay:
            gradient = gradient.add_(weights, alpha=self.weight_decay)
        self._move(weights, gradient, lr, columns)

    @abstractmethod
    def _move(self, weights: Tensor, gradient: Tensor, lr: float, columns: slice) -> None: ...


class SGD(Optimizer):
    """v := momentum v + g, w -= lr v."""

    def __init__(self, shape: torch.Size, device: torch.device, momentum: float, weight_decay: float) -> None:
        super().__init__(weight_decay)
        self.momentum = momentum
        self.velocity = torch.zeros(shape, device=device) if momentum else None

    def _move(self, weights: Tensor, gradient: Tensor, lr: float, columns: slice) -> None:
        if self.velocity is not None:
            velocity = self.velocity[: len(weights), columns]
            if self.steps > 1:
                velocity.mul_(self.momentum).add_(gradient)
            else:
                velocity.copy_(gradient)
            gradient = velocity
        weights.add_(gradient, alpha=-lr)


class Adam(Optimizer):
    """Kingma and Ba, 2015, with bias correction; weight decay is added to the gradient, as in `torch.optim.Adam`."""

    def __init__(self, shape: torch.Size, device: torch.device, weight_decay: float) -> None:
        super().__init__(weight_decay)
        self.beta1, self.beta2, self.epsilon = 0.9, 0.999, 1e-8
        self.first = torch.zeros(shape, device=device)
        self.second = torch.zeros(shape, device=device)

    def reset(self) -> None:
        super().reset()
        self.first.zero_()
        self.second.zero_()

    def _move(self, weights: Tensor, gradient: Tensor, lr: float, columns: slice) -> None:
        first, second = self.first[: len(weights), columns], self.second[: len(weights), columns]
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        denominator = (second.sqrt() / (1 - self.beta2**self.steps) ** 0.5).add_(self.epsilon)
        weights.addcdiv_(first, denominator, value=-lr / (1 - self.beta1**self.steps))
