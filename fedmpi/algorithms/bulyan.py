"""Bulyan.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium. ICML 2018.
https://arxiv.org/abs/1802.07927
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.robust import Robust, krum_scores
from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt
from fedmpi.typing import Cohort, Federation, Stack, Tensor


@with_options
class Bulyan(Robust):
    """A trimmed mean of models that Krum selects one after another (El Mhamdi et al., 2018).

    Of m models with at most f faulty ones, Krum selects one, which is set aside, until m - 2 f are selected. Each
    coordinate is the mean of the m - 4 f selected values that are nearest to their median. m must be at least
    4 f + 3. Distances are over the parameters, not over running statistics. Rejected vectors count among the f. If
    too few other models arrive in a round, the global model does not change.

    Args:
        faulty: f, the largest number of faulty clients in a round.
    """

    faulty: NonNegativeInt = 1

    client_metrics = ("selected",)

    def check(self, cohort: int) -> None:
        needed = 4 * self.faulty + 3
        require(cohort >= needed, "cohort", cohort, f"at least {needed} for Bulyan with {self.faulty} faulty clients")

    def aggregate(self, fed: Federation, cohort: Cohort, models: Stack) -> Tensor | None:
        faulty, arrived = max(self.faulty - models.rejected, 0), len(models.present)
        are_enough = arrived >= 4 * faulty + 3
        chosen = select(models.distances(), faulty) if are_enough else np.empty(0, dtype=np.int64)
        if fed.is_server:
            everyone = np.arange(len(cohort))
            selected = torch.from_numpy(np.isin(everyone, models.present[chosen]))
            fed.record(cohort.block(everyone), selected=selected)
        return models.combine(lambda values: near_median(values[chosen], 2 * faulty)) if are_enough else None


def select(distances: NDArray[np.float64], faulty: int) -> NDArray[np.int64]:
    """[k - 2 faulty], the models that Krum selects one after another, from squared distances [k, k]; ascending."""
    left = np.arange(len(distances))
    for _ in range(len(distances) - 2 * faulty):
        # Scores are over at least two neighbours. With one, two models that are nearest to each other would tie.
        scores = krum_scores(distances[np.ix_(left, left)], min(faulty, len(left) - 4))
        left = np.delete(left, np.argmin(scores))
    return np.setdiff1d(np.arange(len(distances)), left)


def near_median(values: NDArray[np.float32], cut: int) -> NDArray[np.float64]:
    """[c], the mean of [k, c] without the `cut` values that are furthest from the median of their coordinate."""
    values = np.sort(values, axis=0).astype(np.float64)
    middle = np.median(values, axis=0)
    nearest = np.argsort(np.abs(values - middle), axis=0, kind="stable")[: len(values) - cut]
    result: NDArray[np.float64] = np.take_along_axis(values, nearest, axis=0).mean(axis=0)
    return result
