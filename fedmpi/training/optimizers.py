"""Local optimizers on flat vectors: a step takes a few operations, whatever the number of tensors.

They are bit-identical to `torch.optim.SGD`, `torch.optim.Adam` and `torch.optim.AdamW` (a test compares them), if the
learning rate is a number. They save a Python loop over tensors in every step, and a new optimizer object per client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor

ALL = slice(None)
#: The learning rate of a step, or that of each client, [K, 1].
Rate: TypeAlias = float | Tensor


class Optimizer(ABC):
    """The optimizer of K clients.

    A step begins with `advance`; then `step` is called for all parameters or parts of them.

    Args:
        weight_decay: strength of the pull of the weights towards 0.
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

    def step(self, weights: Tensor, gradient: Tensor, lr: Rate, columns: slice = ALL) -> None:
        """Update `weights` [K, n] in place, columns of [K, d]; `gradient` [K, n] may be overwritten.

        K may decrease from step to step.
        """
        if self.weight_decay:
            gradient = self._decay(weights, gradient, lr)
        self._move(weights, gradient, lr, columns)

    def _decay(self, weights: Tensor, gradient: Tensor, lr: Rate) -> Tensor:
        """Let the weights decay; returns the gradient of the step."""
        return gradient.add_(weights, alpha=self.weight_decay)

    @abstractmethod
    def _move(self, weights: Tensor, gradient: Tensor, lr: Rate, columns: slice) -> None: ...


class SGD(Optimizer):
    """v := momentum v + g, w -= lr v. Weight decay times w is added to g."""

    def __init__(self, shape: torch.Size, device: torch.device, momentum: float, weight_decay: float) -> None:
        super().__init__(weight_decay)
        self.momentum = momentum
        self.velocity = torch.zeros(shape, device=device) if momentum else None

    def _move(self, weights: Tensor, gradient: Tensor, lr: Rate, columns: slice) -> None:
        if self.velocity is not None:
            velocity = self.velocity[: len(weights), columns]
            if self.steps > 1:
                velocity.mul_(self.momentum).add_(gradient)
            else:
                velocity.copy_(gradient)
            gradient = velocity
        if isinstance(lr, Tensor):
            weights.addcmul_(gradient, lr, value=-1)
        else:
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

    def _move(self, weights: Tensor, gradient: Tensor, lr: Rate, columns: slice) -> None:
        first, second = self.first[: len(weights), columns], self.second[: len(weights), columns]
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        denominator = (second.sqrt() / (1 - self.beta2**self.steps) ** 0.5).add_(self.epsilon)
        rate = lr / (1 - self.beta1**self.steps)
        if isinstance(rate, Tensor):
            weights.addcdiv_(first * rate, denominator, value=-1)
        else:
            weights.addcdiv_(first, denominator, value=-rate)


class AdamW(Adam):
    """Adam whose weights decay on their own before each step: w *= 1 - lr decay (Loshchilov and Hutter, 2019)."""

    def _decay(self, weights: Tensor, gradient: Tensor, lr: Rate) -> Tensor:
        weights.mul_(1 - lr * self.weight_decay)
        return gradient
