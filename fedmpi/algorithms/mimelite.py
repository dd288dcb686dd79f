"""MimeLite.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh: Breaking the Centralized Barrier for Cross-Device Federated
Learning. NeurIPS 2021. Earlier title: Mime. https://arxiv.org/abs/2008.03606
"""

from __future__ import annotations

from typing import Literal

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, PositiveFloat
from fedmpi.training.block import GRADIENT, WHOLE, Phase
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


@with_options
class MimeLite(FedAvg):
    """Local steps of a server optimizer whose state does not change within a round (Karimireddy et al., 2021).

    The server sends its model w and the optimizer's state. A client computes its full gradient G_k at w, which takes
    another pass over the samples, whose batches count as steps. Then it trains with the received state. The server
    averages the models, and updates the state with the mean G of the G_k.

    With momentum, a step follows (1 - beta1) g + beta1 m, and m becomes (1 - beta1) G + beta1 m. With adam, a step
    follows that divided by sqrt(v) + epsilon, and v becomes (1 - beta2) G^2 + beta2 v. Nothing is corrected for the
    first rounds, in which m and v are near 0. Full Mime's correction of local gradients is left out. Steps are
    clipped after mixing.

    Args:
        base: the optimizer.
        beta1: decay of the mean gradient; with momentum, 0 is FedAvg.
        beta2: decay of the mean squared gradient, for adam.
        epsilon: added to the root of the mean squared gradient, for adam.
    """

    base: Literal["momentum", "adam"] = "momentum"
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.99
    epsilon: PositiveFloat = 1e-3

    server_state = ("weights", "moments")
    hidden_state = ("moments",)
    weighting = "uniform"
    direction_is_elementwise = True
    takes_privacy = False  # gradients are sent as well

    def setup(self, fed: Federation) -> None:
        require(fed.local.optimizer == "sgd", "--local.optimizer", fed.local.optimizer, "sgd with MimeLite")
        require(not fed.local.momentum, "--local.momentum", fed.local.momentum, "0 with MimeLite, which has its own")
        super().setup(fed)
        self.moments = self.weights.new_zeros(len(self.decays), fed.layout.parameters)  # m, and v for adam

    @property
    def decays(self) -> tuple[float, ...]:
        """Of each moment."""
        return (self.beta1, self.beta2) if self.base == "adam" else (self.beta1,)

    @property
    def trainings(self) -> tuple[Phase, ...]:
        return GRADIENT, WHOLE

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        whole, trained = slice(layout.size), slice(layout.parameters)
        return [whole, *len(self.decays) * [trained]], [whole, trained]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained, unit = slice(0, fed.layout.parameters), fed.local.lr
        start, moments = fed.broadcast(self.weights), fed.broadcast(self.moments)
        received = dict(zip(("first", "second"), moments, strict=False))
        models, gradients = fed.weighted_mean(cohort, start), fed.weighted_mean(cohort, columns=trained)
        for block in fed.my_clients(cohort):
            # Scaled to the size of an update, for which sums are exact.
            gradient = fed.at_clients.gradients(block, start, self).mul_(unit)
            local = fed.train(block, start, self, **received)
            models.add(local.weights, block)
            gradients.add(gradient, block)
        self.server_step(fed, models.reduce(empty=self.weights))
        mean = gradients.reduce() / unit
        decays = self.moments.new_tensor(self.decays)[:, None]
        self.moments = decays * self.moments + (1 - decays) * torch.stack([mean, mean.square()])[: len(decays)]

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        if self.base == "momentum" and not self.beta1:
            return gradient
        mixed = gradient.mul_(1 - self.beta1).add_(block["first"], alpha=self.beta1)
        return mixed if self.base == "momentum" else mixed.div_(block["second"].sqrt().add_(self.epsilon))
