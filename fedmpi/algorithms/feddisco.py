"""FedDisco.

Ye, Xu, Wang, Xu, Chen, Wang: FedDisco: Federated Learning with Discrepancy-Aware Collaboration. ICML 2023.
https://arxiv.org/abs/2305.19229
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat
from fedmpi.typing import Cohort, Federation


@with_options
class FedDisco(FedAvg):
    """FedAvg with smaller weights of clients whose labels are far from uniform (Ye et al., 2023).

    The weight of a client is proportional to max(q_k - a d_k + b, 0). Here q_k is its share of the cohort's samples,
    and d_k the distance of its label distribution to the uniform one, divided by the sum over the cohort. If all
    weights are 0, they are q_k. A client of weight 0 trains and sends its model as well. Clients send their label
    counts once, before the first round; these bytes are not counted.

    Args:
        a: weight of the distance.
        b: added to all weights; with a = b = 0 it is FedAvg.
        distance: kl: Kullback-Leibler divergence from the uniform distribution. l1, l2: norm of the difference.
            cosine: 1 - cosine.
        normalise: whether distances are divided by their sum over the cohort.
    """

    a: NonNegativeFloat = 0.5
    b: NonNegativeFloat = 0.1
    distance: Literal["kl", "l1", "l2", "cosine"] = "kl"
    normalise: bool = True

    needs_classes = True
    takes_privacy = False  # label counts are sent as well

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if self.a or self.b:
            far = self.distances(fed.label_counts[cohort.clients].astype(np.float64))
            # Whole numbers, so that means stay exact.
            weights = np.rint(2.0**30 * self.weigh(cohort.mass.astype(np.float64), far))
            cohort = replace(cohort, mass=weights.astype(np.int64))
        super().round(fed, cohort)

    def distances(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """[m], of the label distributions with these counts [m, C] to the uniform one; 0 without samples."""
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        uniform = np.full(counts.shape[1], 1 / counts.shape[1])
        if self.distance == "kl":
            found = np.where(counts > 0, shares * np.log(np.where(counts > 0, shares / uniform, 1)), 0).sum(1)
        elif self.distance == "cosine":
            norms = np.linalg.norm(shares, axis=1) * np.linalg.norm(uniform)
            found = 1 - shares @ uniform / np.where(norms > 0, norms, 1)
        else:
            found = np.linalg.norm(shares - uniform, ord=int(self.distance[1]), axis=1)
        return np.where(counts.any(1), found, 0)

    def weigh(self, samples: NDArray[np.float64], far: NDArray[np.float64]) -> NDArray[np.float64]:
        """[m] weights that sum to 1, from the clients' samples [m] and distances [m]."""
        share = samples / max(samples.sum(), 1)
        if self.normalise and far.any():
            far = far / far.sum()
        weights = np.where(samples > 0, np.maximum(share - self.a * far + self.b, 0), 0)
        return weights / weights.sum() if weights.any() else share
