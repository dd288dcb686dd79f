"""The weights of the clients' models in DistributionFusion, computed from the components of the clients.

Duan, Li, Zou, Li, Lu: Federated Learning with Data-Agnostic Distribution Fusion. CVPR 2023.

Client k belongs to component m with the responsibility r_km; the responsibilities of a client sum to 1. The model of
a component is the mean of the clients' models with weights b_km = n_k r_km / R_m, where R_m = sum_k n_k r_km is the
mass of the component. The global model is the mean of the components' models with weights pi_m. So a client's model
has the weight omega_k = sum_m pi_m b_km.

With pi_m = R_m / N for the same clients, this is FedAvg's weight n_k / N, whatever the responsibilities are. There
are two ways to differ from it. If R_m is computed from all known clients instead of the cohort, a component has its
weight in the population, however many of its clients were drawn (post-stratification). If pi_m is proportional to
R_m^tau with tau < 1, rare components get more weight; this preference is chosen, not inferred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.typing import Cohort, Layout

Floats = NDArray[np.float64]
Allotment = Literal["hard", "soft"]

#: A component below this share of the total mass is dropped.
LEAST_SHARE = 1e-3
#: Weights become whole numbers in units of 2^-48, so that means are exact.
UNIT = 2.0**-48
#: Temperature of the soft allocation; plain probabilities would be nearly equal for all clients.
TEMPERATURE = 0.3


class Statistics:
    """Positions of normalisation layers' parameters and statistics in a model's vector, and features from them.

    Args:
        layout: of the model.
        which: the layers that features are computed from. All layers are merged.

    Attributes:
        columns: the n elements of a model's vector.
        means, variances: [c] positions among these of the running means, and of the running variances.
    """

    def __init__(self, layout: Layout, which: Literal["first_last", "all"]) -> None:
        self.columns = slice(layout.segments["norm"].start, layout.size)
        layers = layout.normalisations
        self.means, self.variances = (self._places(layers, name) for name in ("running_mean", "running_var"))
        chosen = layers if which == "all" else layers[:1] + layers[1:][-1:]
        self._chosen = [self._places(chosen, name) for name in ("running_mean", "running_var", "bias", "weight")]

    @property
    def size(self) -> int:
        """n; 0 for a model without such layers."""
        return self.columns.stop - self.columns.start

    @property
    def extent(self) -> tuple[int, int]:
        """d, and the number of features that are means and deviations; d if the layers have no running statistics."""
        size = sum(map(len, self._chosen))
        return size, 2 * len(self._chosen[0]) or size

    def features(self, rows: Floats) -> Floats:
        """[k, d], the features of rows [k, n]: means, logarithms of deviations, shifts and scales."""
        mean, variance, shift, scale = (rows[:, places] for places in self._chosen)
        with np.errstate(invalid="ignore"):  # for a negative variance, which only a diverged client has
            deviation = np.log(variance + 1e-5) / 2
        return np.concatenate([mean, deviation, shift, scale], 1)

    def merge(self, rows: Floats, weights: Floats, moments: bool) -> Floats:
        """[n], the mean of rows [k, n] with weights [k] that sum to 1.

        Args:
            moments: whether the merged variance is that of the mixture of the clients' distributions: the mean of
                var_k + (mu_k - mu)^2. The one-pass formula (mean of squares minus square of the mean) would lose
                digits.
        """
        merged: Floats = (weights[:, None] * rows).sum(0)
        if moments:
            apart = (rows[:, self.means] - merged[self.means]) ** 2
            merged[self.variances] += (weights[:, None] * apart).sum(0)
        return merged

    def _places(self, layers: list[dict[str, slice]], name: str) -> NDArray[np.int64]:
        parts = [np.arange(layer[name].start, layer[name].stop) for layer in layers if name in layer]
        return np.concatenate([np.empty(0, np.int64), *parts]) - self.columns.start


@dataclass(frozen=True)
class Fusion:
    """Weights of k clients' models, computed from A components.

    Attributes:
        weights: [k] omega, which sum to 1.
        allocation: [k, A] b, which sum to 1 for each component.
        components: [A] pi, which sum to 1.
    """

    weights: Floats
    allocation: Floats
    components: Floats


def responsibilities(log_q: Floats, mass: NDArray, how: Allotment) -> tuple[Floats, NDArray[np.int64]]:
    """[k, A] responsibilities, and [A] the components that are in use, from [k, M] log-probabilities.

    A component with less than a thousandth of the mass is dropped, and its clients go to the others.

    Args:
        mass: [k] n_k.
        how: hard: each client belongs to its most probable component. soft: by the probabilities to the power of 1 /
            0.3.
    """
    shares = mass @ _allotted(log_q, how) / mass.sum()
    alive = np.flatnonzero(shares >= min(LEAST_SHARE, shares.max()))
    return _allotted(log_q[:, alive], how), alive


def _allotted(log_q: Floats, how: Allotment) -> Floats:
    if how == "hard":
        return np.eye(log_q.shape[1])[log_q.argmax(1)]
    powers = np.exp((log_q - log_q.max(1, keepdims=True)) / TEMPERATURE)
    return np.asarray(powers / powers.sum(1, keepdims=True))


def represented(r: Floats) -> NDArray[np.int64]:
    """Whether each of A components has a client with a responsibility [k, A] of at least a thousandth."""
    largest = r.max(0)
    return np.flatnonzero(largest >= min(LEAST_SHARE, largest.max()))


def fuse(r: Floats, mass: NDArray, power: float, cap: float | None, masses: Floats | None = None) -> Fusion:
    """The weights of clients with responsibilities [k, A] and masses [k]; no component may be empty.

    Args:
        power: tau. 1: the weight of a component is its mass. 0: all components have equal weights.
        cap: maximum of a weight, as a multiple of n_k / N. What is cut off goes to the other weights, within their
            maximum. None: no maximum.
        masses: [A] of the components in the population; None: of these clients, which with tau = 1 gives FedAvg.
    """
    own = mass @ r
    shares = component_shares(own if masses is None else masses, power)
    allocation = mass[:, None] * r / own
    weights = allocation @ shares
    weights /= weights.sum()
    return Fusion(weights if cap is None else capped(weights, cap * mass / mass.sum()), allocation, shares)


def component_shares(masses: Floats, power: float) -> Floats:
    """[A] pi, for components with masses [A]."""
    shares = (masses / masses.sum()) ** power
    shares /= shares.sum()
    return np.asarray(shares)


def stratified(r: Floats, mass: NDArray, masses: Floats) -> Floats:
    """[k] weights that sum to 1, with which a mean over a cohort estimates the mean over the known population.

    Among the known clients, a component has its weight in the population.

    Args:
        r: [k, M] responsibilities; NaN for an unknown client.
        mass: [k] n_k.
        masses: [M] of the components in the population.
    """
    weights = mass / mass.sum()
    known = ~np.isnan(r[:, 0])
    if known.any():
        which = represented(r[known])
        fusion = fuse(r[known][:, which], mass[known], 1.0, None, masses[which])
        weights[known] = weights[known].sum() * fusion.weights
    return np.asarray(weights)


def scaled(x: Floats, center: Floats | float = 0.0) -> Floats:
    """[k, d] minus the center [d], each column divided by its standard deviation, or by 0.001 if that is smaller."""
    return np.asarray((x - center) / np.maximum(x.std(0), 1e-3))


def capped(weights: Floats, largest: Floats) -> Floats:
    """[k] weights that sum to 1, none above its maximum [k]. Weights below their maximum keep their proportions.

    Cutting once and dividing by the sum would lift the cut weights above their maximum again.
    """
    weights = weights.copy()
    cut = np.zeros(len(weights), dtype=bool)
    while (over := (weights > largest * (1 + 1e-12)) & ~cut).any():
        cut |= over
        weights[cut] = largest[cut]
        weights[~cut] *= (1 - largest[cut].sum()) / weights[~cut].sum()
    return weights


def label_distance(weights: Floats, labels: NDArray, mass: NDArray, everyone: NDArray) -> float:
    """The L1 distance of the label distribution of clients with weights [k] from that of all clients with masses [n].

    Args:
        labels, everyone: [k, classes] and [n, classes], numbers of samples per class of these clients.
    """
    some, all_of_them = (counts / np.maximum(counts.sum(1, keepdims=True), 1) for counts in (labels, everyone))
    return float(np.abs(weights @ some / weights.sum() - mass @ all_of_them / mass.sum()).sum())


def between_components(weights: Floats, mass: NDArray, component: NDArray[np.int64]) -> float:
    """The share of the variance of omega_k / (n_k / N) that is between components.

    NaN if there is hardly any variance.

    Args:
        weights, mass, component: [k] omega_k, n_k and the component of each client. The variance is over samples.
    """
    share = mass / mass.sum()
    ratio = weights / share - 1  # its mean is 0
    whole = share @ ratio**2
    number = np.unique(component, return_inverse=True)[1]
    masses, sums = np.bincount(number, share), np.bincount(number, share * ratio)
    return float((sums**2 / masses).sum() / whole) if whole > 1e-12 else np.nan


def correlation(some: Floats, others: Floats) -> float:
    """Correlation of [k] and [k]; NaN if one of them hardly varies."""
    varies = min(np.ptp(some) / abs(some).max(), np.ptp(others) / abs(others).max()) > 1e-6
    return float(np.corrcoef(some, others)[0, 1]) if varies else np.nan


def weighted_by(cohort: Cohort, omega: NDArray[np.float32]) -> Cohort:
    """The cohort with weights omega [m], unless all are zero."""
    mass = np.rint(omega.astype(np.float64) / UNIT).astype(np.int64)
    expected = cohort.expected_mass and cohort.expected_mass / cohort.total_mass * int(mass.sum())
    return replace(cohort, mass=mass, expected_mass=expected)
