"""SCAFFOLD.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning.
ICML 2020. https://arxiv.org/abs/1910.06378
"""

from __future__ import annotations

from typing import Literal

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.training.block import GRADIENT, WHOLE, Phase
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


@with_options
class SCAFFOLD(Algorithm):
    """Local steps corrected by control variates, which reduce client drift (Karimireddy et al., 2020).

    Algorithm 1 of the paper. The server's learning rate is
    `--server_optimizer Momentum --server_optimizer.lr ETA --server_optimizer.momentum 0`. With `--weighting samples`,
    a client with n samples counts as n clients of the paper. Option II divides by the sum of the coefficients with
    which the gradients enter the client's update; without local momentum that is the number of steps. With
    `--local.clip_norm` it is an approximation.

    Args:
        option: how the client's new control variate is computed. I: the gradient of the whole training loss at the
            received model, which takes another pass over the samples, whose batches count as steps. II: the mean
            gradient of the local steps.
    """

    option: Literal["I", "II"] = "II"

    server_state = ("weights", "control")
    weighting = "uniform"
    counts_clients_once = averages_models = takes_server_optimizer = direction_is_elementwise = True
    takes_rate_per_step = False

    @property
    def trainings(self) -> tuple[Phase, ...]:
        return (GRADIENT, WHOLE) if self.option == "I" else (WHOLE,)

    def setup(self, fed: Federation) -> None:
        require(fed.local.optimizer == "sgd", "--local.optimizer", fed.local.optimizer, "sgd with SCAFFOLD")
        super().setup(fed)
        self.control = self.weights.new_zeros(fed.layout.parameters)  # c
        self.controls = fed.client_state("control", self.control)  # c_k

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        both = [slice(layout.size), slice(layout.parameters)]
        return both, both

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained, unit = slice(0, fed.layout.parameters), fed.local.lr
        start, control = fed.broadcast(self.weights), fed.broadcast(self.control)
        models, changes = fed.weighted_mean(cohort, start), fed.weighted_mean(cohort, columns=trained)
        for block in fed.my_clients(cohort):
            own = self.controls[block]
            # change = unit (c_k' - c_k), scaled to the size of an update, for which sums are exact. The unit is the
            # same in all rounds, because --compression may send a part of a change in a later round.
            if self.option == "I":
                change = fed.at_clients.gradients(block, start, self).sub_(own).mul_(unit)
            local = fed.train(block, start, self, correction=control - own)
            if self.option == "II":
                steps = start.new_tensor(fed.local.normaliser(local.steps) * (fed.lr / unit))[:, None]
                change = (start - local.weights)[:, trained].div_(steps).sub_(control, alpha=unit)
            models.add(local.weights, block)
            changes.add(change, block)
            self.controls[block] = own.add_(change, alpha=1 / unit)
        self.server_step(fed, models.reduce(empty=self.weights))
        self.control = self.control + changes.reduce() * (fed.fraction_heard(changes) / unit)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient.add_(block["correction"])
