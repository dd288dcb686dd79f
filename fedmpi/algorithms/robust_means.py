"""Robust rules that are weighted means of the clients' models.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning. IEEE Transactions on Signal Processing, 2022.
https://arxiv.org/abs/1912.13445
Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization. ICML 2021.
https://arxiv.org/abs/2012.10333
Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning? 2019. https://arxiv.org/abs/1911.07963

The weights follow from inner products of the clients' changes, so that no rank needs all models. As with Krum, inner
products are over the parameters, not over running statistics, which are averaged with the same weights.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.robust import Robust
from fedmpi.options import with_options
from fedmpi.ranges import PositiveFloat, PositiveInt
from fedmpi.typing import Cohort, Federation, Stack, Tensor


class RobustMean(Robust):
    """Base of the rules that add up the clients' changes, each with a factor."""

    def aggregate(self, fed: Federation, cohort: Cohort, models: Stack) -> Tensor | None:
        factors = self.factors(models.pairwise(lambda changes: changes @ changes.T))
        total = factors.sum()
        if not total:
            return None
        mass, group = np.zeros((2, len(cohort)), dtype=np.int64)
        mass[models.present] = np.rint(2.0**40 * factors / total)  # whole numbers, so that means are exact
        mean = models.means(group, mass, 1)[0]
        if abs(total - 1) > 1e-9:
            trained = slice(0, fed.layout.parameters)
            mean[trained] = self.weights[trained] + total * (mean - self.weights)[trained]
        return mean

    @abstractmethod
    def factors(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """[k] the factor of each client's change, from the inner products [k, k] of the changes."""


@with_options
class GeometricMedian(RobustMean):
    """The model with the smallest sum of distances to the clients' models (RFA; Pillutla et al., 2022).

    It is computed by the smoothed Weiszfeld algorithm, from the mean: each step is a mean with weights
    1 / max(nu, d_k) for the distances d_k to the model of the step before. The steps end early if the weights do not
    change.

    Args:
        smoothing: nu; smaller distances count as this one.
        iterations: largest number of steps.
    """

    smoothing: PositiveFloat = 1e-6
    iterations: PositiveInt = 1000

    def factors(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = np.full(len(products), 1 / max(len(products), 1))
        for _ in range(self.iterations):
            before, nearness = shares, 1 / np.maximum(distances(products, shares), self.smoothing)
            shares = nearness / nearness.sum()
            if np.allclose(shares, before, rtol=1e-9, atol=0):
                break
        return shares


@with_options
class CentredClipping(RobustMean):
    """The mean of changes that are clipped around a centre (Karimireddy et al., 2021).

    In each step, v becomes v + mean_k (D_k - v) min(1, radius / |D_k - v|) with the clients' changes D_k. v starts at
    0, the received model, and is the change of the model in the end. Clients have no momentum.

    Args:
        radius: largest length of a difference from the centre, tau in the paper.
        iterations: number of steps.
    """

    radius: PositiveFloat = 1.0
    iterations: PositiveInt = 3

    def factors(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        centre = np.zeros(len(products))
        for _ in range(self.iterations):
            kept = self.radius / np.maximum(distances(products, centre), self.radius) / max(len(centre), 1)
            centre = (1 - kept.sum()) * centre + kept
        return centre


@with_options
class NormBounding(RobustMean):
    """The mean of the clients' changes, each clipped to a length (Sun et al., 2019).

    It is centred clipping with one step. The paper can also add noise: `--privacy CentralDP` with FedAvg clips in the
    same way and adds noise.

    Args:
        radius: largest length of a client's change of the parameters.
    """

    radius: PositiveFloat = 1.0

    def factors(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        return CentredClipping(self.radius, 1).factors(products)


def distances(products: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k] distances of vectors to their sum with these factors [k], from their inner products [k, k]."""
    along = products @ factors
    return np.sqrt(np.maximum(factors @ along - 2 * along + products.diagonal(), 0))
