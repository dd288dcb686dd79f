"""What each client's model counts in a distribution fusion, from how its statistics are allotted to components.

Duan, Li, Zou, Li, Lu: Federated Learning with Data-Agnostic Distribution Fusion. CVPR 2023.

Client k belongs to component m by the responsibility r_km, of which each client has 1 in all. A component's model is
the mean of the clients' with b_km = n_k r_km / R_m, where R_m = sum_k n_k r_km is its mass, and the global model is
the mean of the components' with pi_m, so that a client's model counts omega_k = sum_m pi_m b_km.

With pi_m = R_m / N of the same clients this is n_k / N, FedAvg's weight, whatever the responsibilities are. Two
things make a difference. With R_m of all clients that are known, in place of the cohort's, a component counts what it
does in the population, however many of its clients were drawn: post-stratification. With pi_m proportional to
R_m^tau, tau < 1, rare components count more: a preference that is chosen, not inferred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.typing import Cohort, Layout

Floats = NDArray[np.float64]
Allotment = Literal["hard", "soft"]

#: Below this share of all mass a component is left out.
LEAST_SHARE = 1e-3
#: Weights become whole numbers, of which means are exact, in units of 2^-48.
UNIT = 2.0**-48
#: Of the soft allotment; plain probabilities would be nearly the same for all clients.
TEMPERATURE = 0.3


class Statistics:
    """Where the parameters and statistics of normalisation layers lie in a model's vector, and what is inferred from.

    Args:
        layout: of the model.
        which: the layers that are inferred from; all are merged.

    Attributes:
        columns: of a model's vector, which n elements these are.
        means, variances: [c] among these, the running means, and the running variances that belong to them.
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
        """d, and how many of the features are means and deviations; all d if the layers keep none."""
        size = sum(map(len, self._chosen))
        return size, 2 * len(self._chosen[0]) or size

    def features(self, rows: Floats) -> Floats:
        """[k, d], what is inferred from, of rows [k, n]: means, logarithms of deviations, shifts and scales."""
        mean, variance, shift, scale = (rows[:, places] for places in self._chosen)
        with np.errstate(invalid="ignore"):  # of a variance below zero, which no healthy client has
            deviation = np.log(variance + 1e-5) / 2
        return np.concatenate([mean, deviation, shift, scale], 1)

    def merge(self, rows: Floats, weights: Floats, moments: bool) -> Floats:
        """[n], the mean of rows [k, n] with weights [k] that sum to 1.

        Args:
            moments: whether variances become those of the mixture of the clients' distributions, that is the mean of
                var_k + (mu_k - mu)^2. In the one-pass form, of squares less the square, they would cancel.
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
    """Weights of k clients' models by way of A components.

    Attributes:
        weights: [k] omega, which sum to 1.
        allocation: [k, A] b; of each component they sum to 1.
        components: [A] pi, which sum to 1.
    """

    weights: Floats
    allocation: Floats
    components: Floats


def responsibilities(log_q: Floats, mass: NDArray, how: Allotment) -> tuple[Floats, NDArray[np.int64]]:
    """[k, A] the clients' responsibilities, and [A] the components that are alive, from [k, M] log probabilities.

    A component of less than a thousandth of the mass is left out, and its clients go to the others.

    Args:
        mass: [k] n_k.
        how: hard, each client to its likeliest component; or soft, by the probabilities to the power of 1 / 0.3.
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
    """Which of A components some client of responsibilities [k, A] belongs to, by a thousandth at least."""
    largest = r.max(0)
    return np.flatnonzero(largest >= min(LEAST_SHARE, largest.max()))


def fuse(r: Floats, mass: NDArray, power: float, cap: float | None, masses: Floats | None = None) -> Fusion:
    """The weights of clients with responsibilities [k, A] and masses [k], of which no component is empty.

    Args:
        power: tau. 1: components count their masses; 0: alike.
        cap: how many times n_k / N a weight may be; what is cut off goes to the others, as far as they may have it.
            None: as large as it is.
        masses: [A] of the components in the population; None: those of these clients, of which tau = 1 makes FedAvg.
    """
    own = mass @ r
    shares = component_shares(own if masses is None else masses, power)
    allocation = mass[:, None] * r / own
    weights = allocation @ shares
    weights /= weights.sum()
    return Fusion(weights if cap is None else capped(weights, cap * mass / mass.sum()), allocation, shares)


def component_shares(masses: Floats, power: float) -> Floats:
    """[A] pi, of components with masses [A]."""
    shares = (masses / masses.sum()) ** power
    shares /= shares.sum()
    return np.asarray(shares)


def stratified(r: Floats, mass: NDArray, masses: Floats) -> Floats:
    """[k] weights that sum to 1, by which a mean over a cohort is one over the population, as far as that is known.

    A component of which clients are known counts among these what it does in the population.

    Args:
        r: [k, M] responsibilities, NaN of a client that is not known.
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
    """[k, d] less the center [d], each column over its standard deviation, but at least 0.001."""
    return np.asarray((x - center) / np.maximum(x.std(0), 1e-3))


def capped(weights: Floats, largest: Floats) -> Floats:
    """[k] weights that sum to 1, none above its largest [k]; those below keep their proportions.

    Cutting and dividing by the sum would lift what was cut above its largest again.
    """
    weights = weights.copy()
    cut = np.zeros(len(weights), dtype=bool)
    while (over := (weights > largest * (1 + 1e-12)) & ~cut).any():
        cut |= over
        weights[cut] = largest[cut]
        weights[~cut] *= (1 - largest[cut].sum()) / weights[~cut].sum()
    return weights


def label_distance(weights: Floats, labels: NDArray, mass: NDArray, everyone: NDArray) -> float:
    """The l1 distance of the label mix of clients with weights [k] from that of all clients with masses [n].

    Args:
        labels, everyone: [k, classes] and [n, classes], how many labels of each class these clients have.
    """
    some, all_of_them = (counts / np.maximum(counts.sum(1, keepdims=True), 1) for counts in (labels, everyone))
    return float(np.abs(weights @ some / weights.sum() - mass @ all_of_them / mass.sum()).sum())


def between_components(weights: Floats, mass: NDArray, component: NDArray[np.int64]) -> float:
    """Of the variance of omega_k / (n_k / N), the share that lies between components; NaN if there is hardly any.

    Args:
        weights, mass, component: [k] omega_k, n_k and the component of each client; the variance is over samples.
    """
    share = mass / mass.sum()
    ratio = weights / share - 1  # its mean is 0
    whole = share @ ratio**2
    number = np.unique(component, return_inverse=True)[1]
    masses, sums = np.bincount(number, share), np.bincount(number, share * ratio)
    return float((sums**2 / masses).sum() / whole) if whole > 1e-12 else np.nan


def correlation(some: Floats, others: Floats) -> float:
    """Of [k] and [k]; NaN where one of them hardly varies."""
    varies = min(np.ptp(some) / abs(some).max(), np.ptp(others) / abs(others).max()) > 1e-6
    return float(np.corrcoef(some, others)[0, 1]) if varies else np.nan


def weighted_by(cohort: Cohort, omega: NDArray[np.float32]) -> Cohort:
    """The cohort in whose mean each client counts omega [m], if not none does."""
    mass = np.rint(omega.astype(np.float64) / UNIT).astype(np.int64)
    expected = cohort.expected_mass and cohort.expected_mass / cohort.total_mass * int(mass.sum())
    return replace(cohort, mass=mass, expected_mass=expected)
