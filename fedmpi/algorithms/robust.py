"""Aggregation rules that are robust against some faulty or malicious clients.

Yin, Chen, Kannan, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. ICML 2018.
https://arxiv.org/abs/1803.01498
Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent.
NeurIPS 2017. https://arxiv.org/abs/1703.02757

The papers' rules are for gradients. Here they are applied to the clients' models, which is equivalent, because all
clients received the same model. The rules also apply to running statistics of normalisation layers, but Krum ignores
these when it selects models.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt, interval
from fedmpi.typing import Cohort, Federation, Stack, Tensor


class Robust(Algorithm):
    """Base of the robust rules. All clients have equal weights, whatever their reported numbers of samples.

    A vector that is not finite is rejected; the column rejected counts them. If no vector is left, the model does not
    change.
    """

    takes_server_optimizer = True
    averages_models = True
    weighting = "uniform"
    counts_clients_once = True

    @property
    def counts_clients_alike(self) -> bool:
        return True

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        models = fed.stack(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self)
            models.add(local.weights, block)
        models.close()
        fed.log(rejected=models.rejected)
        model = self.aggregate(fed, cohort, models)
        if model is not None:
            for variance in fed.layout.variances:
                model[variance].clamp_(min=0)
            self.server_step(fed, model)

    @abstractmethod
    def aggregate(self, fed: Federation, cohort: Cohort, models: Stack) -> Tensor | None:
        """[P], the aggregate that replaces the mean; None if there is none."""


class Median(Robust):
    """The median of the clients' models, coordinate by coordinate (Yin et al., 2018).

    With an even number of models it is the mean of the middle two values.
    """

    def aggregate(self, fed: Federation, cohort: Cohort, models: Stack) -> Tensor | None:
        return models.combine(median) if len(models.present) else None


@with_options
class TrimmedMean(Robust):
    """The mean of the clients' models without the extremes, coordinate by coordinate (Yin et al., 2018).

    Args:
        trim: share of the models that is left out at each end, rounded down. It should be at least the share of
            faulty clients.
    """

    trim: Annotated[float, interval("[0, 0.5)")] = 0.2

    def aggregate(self, fed: Federation, cohort: Cohort, models: Stack) -> Tensor | None:
        cut = int(self.trim * len(models.present) + 1e-9)  # 0.29 * 100 is a little less than 29
        return models.combine(lambda values: trimmed_mean(values, cut)) if len(models.present) else None


@with_options
class Krum(Robust):
    """The client model (or mean of several) that is closest to its nearest neighbours (Blanchard et al., 2017).

    The score of a model is the sum of its squared distances to the m - f - 2 nearest of the other m - 1 models. The
    models with the lowest scores are selected. Distances are over the parameters, not over running statistics. m must
    be at least 2 f + 3. Rejected vectors count among the f. If too few other models arrive in a round, none is
    selected, and the global model does not change.

    Args:
        faulty: f, the largest number of faulty clients in a round.
        select: number of selected models; more than one is multi-Krum.
    """

    faulty: NonNegativeInt = 2
    select: PositiveInt = 1

    client_metrics = ("selected",)

    def check(self, cohort: int) -> None:
        needed = 2 * self.faulty + 3
        require(cohort >= needed, "cohort", cohort, f"at least {needed} for Krum with {self.faulty} faulty clients")
        require(self.select <= cohort, "algorithm.select", self.select, f"at most the cohort, {cohort}")

    def aggregate(self, fed: Federation, cohort: Cohort, models: Stack) -> Tensor | None:
        faulty, arrived = max(self.faulty - models.rejected, 0), len(models.present)
        are_enough = arrived >= 2 * faulty + 3
        scores = krum_scores(models.distances(), faulty) if are_enough else np.empty(0)
        chosen = models.present[np.argsort(scores, kind="stable")[: self.select]]
        if fed.is_server:
            everyone = np.arange(len(cohort))
            fed.record(cohort.block(everyone), selected=torch.from_numpy(np.isin(everyone, chosen)))
        return models.mean(chosen) if are_enough else None


def median(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """[c], of [k, c], which is sorted in place."""
    values.sort(axis=0)
    result: NDArray[np.float64] = (values[(len(values) - 1) // 2].astype(np.float64) + values[len(values) // 2]) / 2
    return result


def trimmed_mean(values: NDArray[np.float32], cut: int) -> NDArray[np.float64]:
    """[c], of [k, c] without the `cut` smallest and the `cut` largest; sorted in place."""
    values.sort(axis=0)
    result: NDArray[np.float64] = values[cut : len(values) - cut].mean(axis=0, dtype=np.float64)
    return result


def krum_scores(distances: NDArray[np.float64], faulty: int) -> NDArray[np.float64]:
    """[k], from squared distances [k, k]; the smallest is the best."""
    others = distances.copy()
    np.fill_diagonal(others, np.inf)  # not the nearest model, because a copy of it would be as near
    nearest = np.sort(others, axis=1)[:, : len(others) - faulty - 2]
    return np.asarray(nearest.sum(axis=1))
