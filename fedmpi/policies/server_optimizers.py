"""How the server updates its model with the mean of the clients' models.

The difference between the mean and the current model is used as a gradient of the server (Reddi et al.: Adaptive
Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295). Running statistics of normalisation layers are
not optimised: they become those of the mean.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

from fedmpi.options import Configured, with_options
from fedmpi.ranges import BelowOne, PositiveFloat
from fedmpi.typing import Tensor


class ServerOptimizer(metaclass=Configured):
    """Base of the server optimizers. All tensors are float32; on other ranks than the server's they are meta tensors.

    Attributes:
        state: vectors [d] that are kept between rounds, by name.
    """

    @cached_property
    def state(self) -> dict[str, Tensor]:
        return {}

    def step(self, weights: Tensor, mean: Tensor, parameters: int) -> Tensor:
        """The next model.

        Args:
            weights: [P] the current model. Its first `parameters` elements are trained.
            mean: [P] of the clients' models.
        """
        delta = mean[:parameters] - weights[:parameters]
        result = mean.clone()
        result[:parameters] = weights[:parameters] + self.update(delta)
        return result

    @abstractmethod
    def update(self, delta: Tensor) -> Tensor:
        """[d] what is added to the parameters, computed from the clients' mean change [d]."""

    def kept(self, name: str, like: Tensor, value: float = 0.0) -> Tensor:
        """A vector of the state, initially filled with `value`."""
        if name not in self.state:
            self.state[name] = like.new_full(like.shape, value)
        return self.state[name]


class Replace(ServerOptimizer):
    """The mean of the clients' models is the next model, as in FedAvg."""

    def step(self, weights: Tensor, mean: Tensor, parameters: int) -> Tensor:
        return mean

    def update(self, delta: Tensor) -> Tensor:
        return delta


@with_options
class Momentum(ServerOptimizer):
    """Momentum: m := momentum m + (1 - dampening) delta, w += lr m (FedAvgM: Hsu, Qi, Brown, 2019).

    Args:
        lr: learning rate of the server.
        momentum: momentum factor.
        dampening: the mean update delta enters the momentum with factor 1 - dampening.
        nesterov: whether to use w += lr (delta + momentum m) instead.
    """

    lr: PositiveFloat = 1.0
    momentum: BelowOne = 0.9
    dampening: BelowOne = 0.0
    nesterov: bool = False

    def step(self, weights: Tensor, mean: Tensor, parameters: int) -> Tensor:
        # This is bit-identical to FedAvg, unlike weights + (mean - weights).
        is_plain = self.lr == 1 and not self.momentum and not self.dampening
        return mean if is_plain else super().step(weights, mean, parameters)

    def update(self, delta: Tensor) -> Tensor:
        kept = self.kept("momentum", delta)
        kept.mul_(self.momentum).add_(delta, alpha=1 - self.dampening)
        return self.lr * (delta + self.momentum * kept if self.nesterov else kept)


class Adaptive(ServerOptimizer):
    """Base of the three adaptive rules of Reddi et al. (2021), algorithm 2: w += lr m / (sqrt(v) + tau).

    m := beta1 m + (1 - beta1) delta, without bias correction; v starts at tau^2.
    """

    lr: float
    beta1: float
    tau: float

    def update(self, delta: Tensor) -> Tensor:
        first = self.kept("first", delta)
        first.mul_(self.beta1).add_(delta, alpha=1 - self.beta1)
        second = self.kept("second", delta, self.tau**2)
        self.move(second, delta * delta)
        return self.lr * first / (second.sqrt() + self.tau)

    @abstractmethod
    def move(self, second: Tensor, square: Tensor) -> None:
        """Update v [d] in place, from the square of delta."""


@with_options
class Adagrad(Adaptive):
    """Adagrad at the server: v := v + delta^2 (Reddi et al., 2021).

    Args:
        lr: learning rate of the server.
        beta1: decay of the first moment.
        tau: degree of adaptivity, added to sqrt(v); v starts at its square.
    """

    lr: PositiveFloat = 0.01
    beta1: BelowOne = 0.0
    tau: PositiveFloat = 1e-3

    def move(self, second: Tensor, square: Tensor) -> None:
        second.add_(square)


@with_options
class Adam(Adaptive):
    """Adam at the server: v := beta2 v + (1 - beta2) delta^2 (Reddi et al., 2021).

    Args:
        lr: learning rate of the server.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: degree of adaptivity, added to sqrt(v); v starts at its square.
    """

    lr: PositiveFloat = 0.01
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.99
    tau: PositiveFloat = 1e-3

    def move(self, second: Tensor, square: Tensor) -> None:
        second.mul_(self.beta2).add_(square, alpha=1 - self.beta2)


class Yogi(Adam):
    """Yogi at the server: v := v - (1 - beta2) delta^2 sign(v - delta^2) (Reddi et al., 2021).

    Args:
        lr: learning rate of the server.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: degree of adaptivity, added to sqrt(v); v starts at its square.
    """

    def move(self, second: Tensor, square: Tensor) -> None:
        second.sub_((1 - self.beta2) * square * (second - square).sign())
