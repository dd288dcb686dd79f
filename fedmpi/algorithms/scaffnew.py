"""Scaffnew, which is ProxSkip for federated learning.

Mishchenko, Malinovsky, Stich, Richtárik: ProxSkip: Yes! Local Gradient Steps Provably Lead to Communication
Acceleration! Finally! ICML 2022. https://arxiv.org/abs/2202.09357
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import Diverged, require
from fedmpi.options import shown, with_options
from fedmpi.ranges import UpToOne
from fedmpi.training.block import Phase
from fedmpi.typing import Block, Cohort, Federation, Tensor


@with_options
class Scaffnew(Algorithm):
    """Local steps with control variates, and a mean after a random number of them (Mishchenko et al., 2022).

    Algorithm 2 of the paper. All clients take part in every round. Each client k steps by w_k -= lr (g_k - h_k),
    where g_k is the gradient of a batch. After every step, all models are averaged with probability p. So the number
    of steps in a round is drawn from the geometric distribution with mean 1 / p; it is the same for all clients. At
    the end of the round, h_k += p / lr (mean - w_k). The h_k tend to the clients' gradients at the common optimum,
    and their sum stays 0.

    `--local.epochs` and `--local.steps` are not used. The learning rate must be the same in all rounds. If the
    training of a client diverges, the run ends, because the sum of the h_k would no longer be 0.

    Args:
        p: probability that a step is the last one of its round. In theory, 1 / sqrt(condition number) is the best.
    """

    p: UpToOne = 0.1

    weighting = "uniform"
    takes_rate_per_step = False
    takes_compression = False  # clients compare their own model with the mean
    needs_all_clients = counts_clients_alike = averages_models = direction_is_elementwise = True

    def setup(self, fed: Federation) -> None:
        needed = {"optimizer": "sgd", "momentum": 0, "clip_norm": None, "schedule": "constant", "warmup": 0}
        for name, allowed in needed.items():
            given = getattr(fed.local, name)
            require(given == allowed, f"--local.{name}", shown(given), f"{shown(allowed)} with Scaffnew")
        super().setup(fed)
        # lr / p h_k - w_k: one vector, from which h_k follows when the next mean arrives.
        self.shifts = fed.client_state("shift", -self.weights[: fed.layout.parameters])

    def phase(self, fed: Federation) -> Phase:
        """The training of the current round."""
        return Phase(steps=int(fed.stream("Scaffnew").geometric(self.p)))

    def count_steps(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        return fed.count_steps(cohort, self.phase(fed))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained, phase, unit = slice(0, fed.layout.parameters), self.phase(fed), self.p / fed.lr
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort, phase):
            shift = self.shifts[block].add_(start[trained])  # lr / p h_k
            local = fed.train(block, start, self, phase, control=shift * unit)
            mean.add(local.weights, block)
            self.shifts[block] = shift.sub_(local.weights[:, trained])
        lost = np.setdiff1d(cohort.clients, fed.undiverged(cohort).clients)
        if len(lost):
            raise Diverged(f"the training of client {lost[0]} diverged, and Scaffnew needs all; lower --local.lr")
        self.weights = mean.reduce(empty=self.weights)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient.sub_(block["control"])
