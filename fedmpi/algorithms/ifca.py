"""The iterative federated clustering algorithm.

Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning. NeurIPS 2020.
https://arxiv.org/abs/2006.04088
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from fedmpi.algorithms.clustered import Clustered
from fedmpi.errors import BadInput, require
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Cohort, Federation, Layout, Tensor, Vectors

#: Maximum number of draws of the initial models.
DRAWS = 50


@with_options
class IFCA(Clustered):
    """Several global models; each client trains the model with the lowest loss on its training samples.

    The model averaging variant of Ghosh et al. (2020). The models start from different random weights, because equal
    models would stay equal. A model that no client chooses does not change. On the virtual clock, computing the
    losses costs one forward pass per model; the draws of `balance` cost nothing.

    Args:
        models: number of models.
        balance: minimum share of the first round's clients that must choose each initial model. All models are drawn
            again until this holds, at most 50 times; then the most balanced draw is used. The released code uses 0.35
            for two models and 0.1 for four. 0: the first draw is used.
        share_body: whether the models differ in the last fully connected layer only. All other layers are then
            averaged over all clients (weight sharing).
    """

    models: PositiveInt = 3
    balance: float = 0.0
    share_body: bool = False

    def __post_init__(self) -> None:
        allowed = f"at least 0 and at most 1 / {self.models}"
        require(0 <= self.balance <= 1 / self.models, "balance", self.balance, allowed)

    @property
    def forward_passes(self) -> int:
        return self.models

    def split(self, layout: Layout) -> tuple[slice, slice]:
        """The columns that each model has separately, and the columns that all models share."""
        own = layout.segments["head"] if self.share_body else slice(0, layout.size)
        if self.share_body and not 0 < own.stop < layout.parameters:
            raise BadInput("--model: IFCA needs one with a fully connected layer, and other layers to share")
        return own, slice(own.stop, layout.size)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        own, shared = self.split(layout)
        return [*self.models * [own], shared], [own, shared]

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        require(self.models <= fed.clients, "models", self.models, f"at most the number of clients, {fed.clients}")
        self.own, self.shared = self.split(fed.layout)
        self.centers = self.draw(fed, 0)
        for one, other in combinations(range(self.models), 2):
            if torch.equal(self.centers[one], self.centers[other]):
                reason = f"IFCA needs one whose initial weights are drawn: its models {one} and {other} start equal"
                raise BadInput(f"--model: {reason}, and would stay so (perhaps all come from --model.weights)")

    def draw(self, fed: Federation, attempt: int) -> Tensor:
        """[M, P], the initial models; different for each attempt."""
        first = attempt * self.models
        centers = torch.stack([fed.initial_weights(first + number) for number in range(self.models)])
        centers[1:, self.shared] = centers[0, self.shared]
        return centers

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if fed.round == 1 and self.balance:
            self.draw_balanced(fed, cohort)
        lengths = (fed.layout.extent(columns)[0] for columns in (self.own, self.shared))
        each = self.models * next(lengths) + next(lengths)
        centers = fed.broadcast(self.centers, received=each * len(cohort))
        heads = fed.weighted_mean(cohort, centers[:, self.own], groups=self.models, columns=self.own)
        body = fed.weighted_mean(cohort, centers[0, self.shared], columns=self.shared) if self.share_body else None
        for block in fed.my_clients(cohort):
            choice = fed.at_clients.losses(block, centers).argmin(1)
            local = fed.train(block, centers[choice], self)
            heads.add(local.weights[:, self.own], block, group=choice)
            if body:
                body.add(local.weights[:, self.shared], block)
            fed.record(block, cluster=choice)
        self.centers = heads.reduce(empty=self.centers[:, self.own])
        if body:
            common = body.reduce(empty=self.centers[0, self.shared])
            self.centers = torch.cat([self.centers, common.expand(self.models, -1)], 1)
        self.note(fed, cohort)

    def draw_balanced(self, fed: Federation, cohort: Cohort) -> None:
        """Draw initial models until each is chosen by enough clients.

        Clients draw the same models from a common seed.
        """
        least: list[float] = []  # for each attempt, the smallest share of clients that choose a model
        while len(least) < DRAWS and max(least, default=-1) < self.balance:
            chosen = fed.at_clients.losses_of_all(cohort.clients, self.draw(fed, len(least)).to(fed.device)).argmin(1)
            least.append(float(np.bincount(chosen, minlength=self.models).min() / len(cohort)))
        if fed.is_server:
            self.centers = self.draw(fed, int(np.argmax(least)))
        fed.log(draws=len(least))
