"""Malicious clients, for tests of robust aggregation rules.

A fixed share of all clients is malicious. Either they train like the others and replace their update of the trained
parameters (running statistics of normalisation layers are sent unchanged), or they train honestly on wrong labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.lazy import torch
from fedmpi.options import Configured, with_options
from fedmpi.randomness import stream
from fedmpi.ranges import NonNegativeFloat, PositiveFloat, interval
from fedmpi.typing import Tensor

Share = Annotated[float, interval("[0, 1]")]


class Attack(metaclass=Configured):
    """Base of the attacks. An attack changes what malicious clients send, or what they train on.

    Args:
        share: share of all clients that is malicious, rounded to whole clients. They are drawn with the seed.
    """

    @abstractmethod
    def __init__(self, share: Share) -> None:
        self.share = share

    def malicious(self, clients: int, seed: int) -> NDArray[np.bool_]:
        """[clients] which clients are malicious; the same in all rounds."""
        return np.isin(
            np.arange(clients), stream(seed, "malicious").permutation(clients)[: round(self.share * clients)]
        )

    def poison(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        """[n], the labels that a malicious client uses instead of the true ones [n]."""
        return labels

    def change(self, change: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """[K, d], what K malicious clients send instead of their changes [K, d].

        Args:
            rngs: one random generator per client.
        """
        return change


class NoAttack(Attack):
    """All clients are honest."""

    def __init__(self) -> None:
        super().__init__(share=0.0)


@with_options
class SignFlip(Attack):
    """Malicious clients send the negated update (Li et al., RSA, AAAI 2019, https://arxiv.org/abs/1811.03761).

    Args:
        share: share of all clients that is malicious.
        scale: factor of the negated update.
    """

    share: Share = 0.2
    scale: PositiveFloat = 1.0

    def change(self, change: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        return -self.scale * change


@with_options
class Gaussian(Attack):
    """Malicious clients send noise instead of their update, as in Blanchard et al. (NeurIPS 2017).

    Args:
        share: share of all clients that is malicious.
        std: standard deviation of the noise.
    """

    share: Share = 0.2
    std: PositiveFloat = 1.0

    def change(self, change: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        noise = np.stack([rng.standard_normal(change.shape[1], dtype=np.float32) for rng in rngs])
        return torch.from_numpy(noise).to(change.device).mul_(self.std)


@with_options
class LabelFlip(Attack):
    """Malicious clients train with label C - 1 - y in place of y, of C classes (Fang et al., USENIX Security 2020).

    Otherwise they follow the method. Test samples keep their labels, and so do the label counts in the results.

    Args:
        share: share of all clients that is malicious.
    """

    share: Share = 0.2

    def poison(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        return classes - 1 - labels


class Collusion(Attack):
    """Base of the attacks whose clients know each other's changes and all send the same vector."""

    @abstractmethod
    def agree(self, changes: NDArray[np.float32], cohort: int) -> NDArray[np.float32]:
        """[c], what all malicious clients send, from c coordinates of their changes.

        Args:
            changes: [b, c], of the malicious clients of the round, in the order of their numbers.
            cohort: m, how many clients the round has.
        """


@with_options
class ALIE(Collusion):
    """A little is enough: mean - z * standard deviation of the malicious clients' honest changes, coordinatewise.

    Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning. NeurIPS 2019.
    https://arxiv.org/abs/1902.06156

    Args:
        share: share of all clients that is malicious.
        z: number of standard deviations; null: by the paper's formula, from the number of malicious clients in the
            round.
    """

    share: Share = 0.2
    z: NonNegativeFloat | None = None

    def agree(self, changes: NDArray[np.float32], cohort: int) -> NDArray[np.float32]:
        z = most_hidden(cohort, len(changes)) if self.z is None else self.z
        values = changes.astype(np.float64)
        return (values.mean(0) - z * values.std(0)).astype(np.float32)


def most_hidden(clients: int, malicious: int) -> float:
    """z of Baruch et al. (2019), with which the malicious vectors stay unnoticed.

    It is the quantile (n - b - s) / (n - b) of the standard normal distribution, for n clients of which b are
    malicious. s = floor(n / 2 + 1) - b honest clients are then further from the mean, so that they form a majority
    with the malicious ones. It is 0 if the quantile is below one half.
    """
    from statistics import NormalDist

    honest = max(clients - malicious, 1)
    needed = max(clients // 2 + 1 - malicious, 1)
    return NormalDist().inv_cdf(max((honest - needed) / honest, 0.5))
