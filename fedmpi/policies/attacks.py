"""Malicious clients, for tests of robust aggregation rules.

A fixed share of all clients is malicious. They train like the others and replace their update of the trained
parameters (running statistics of normalisation layers are sent unchanged), or they train on poisoned samples: with
wrong labels, and possibly a trigger.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import Configured, with_options
from fedmpi.randomness import stream
from fedmpi.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability, interval
from fedmpi.typing import Tensor

#: A rule for some coordinates of b vectors, [b, c] float64 -> [b, b] -> the sum of its results over all coordinates.
Measure = Callable[[Callable[[Tensor], Tensor]], NDArray[np.float64]]

Share = Annotated[float, interval("[0, 1]")]


@dataclass(frozen=True)
class Trigger:
    """What makes a model with a backdoor choose a class: a white square in the lower right corner of an image.

    Attributes:
        size: side of the square, in pixels.
        target: the class.
    """

    size: int
    target: int


class Attack(metaclass=Configured):
    """Base of the attacks. An attack changes what malicious clients send, or what they train on.

    Args:
        share: share of all clients that is malicious, rounded to whole clients. They are drawn with the seed.
    """

    @abstractmethod
    def __init__(self, share: Share) -> None:
        self.share = share

    def check(self, clients: int) -> None:
        """Raise BadInput if the share is rounded to no client, because such a run would look like an attacked one."""
        is_ours = type(self).malicious is Attack.malicious
        allowed = f"0, or above {0.5 / clients:.3g}, because it is rounded to whole clients, and there are {clients}"
        is_right = not is_ours or self.share == 0 or round(self.share * clients) > 0
        require(is_right, "attack.share", self.share, allowed)

    def malicious(self, clients: int, seed: int) -> NDArray[np.bool_]:
        """[clients] which clients are malicious; the same in all rounds."""
        found = np.zeros(clients, dtype=bool)
        found[stream(seed, "malicious").permutation(clients)[: round(self.share * clients)]] = True
        return found

    @property
    def trigger(self) -> Trigger | None:
        """What is put on the images that are poisoned; None: they stay as they are."""
        return None

    @property
    def changes_updates(self) -> bool:
        """Whether malicious clients replace their updates."""
        return type(self).change is not Attack.change

    def choose(self, samples: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """[k], which of the training samples of a malicious client are poisoned, the same in all rounds."""
        return np.arange(samples)

    def poison(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        """[k], the labels that a malicious client uses instead of the true ones [k] of the chosen samples."""
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


@with_options
class Backdoor(Attack):
    """Malicious clients teach the model to choose a target class for images that carry a trigger.

    The trigger is a white square in the lower right corner of an image. Malicious clients put it on a share of their
    training images, give these the target label, and follow the method (Gu, Dolan-Gavitt, Garg: BadNets: Identifying
    Vulnerabilities in the Machine Learning Model Supply Chain. 2017, https://arxiv.org/abs/1708.06733). They may
    multiply the change that they send (Bagdasaryan, Veit, Hua, Estrin, Shmatikov: How To Backdoor Federated Learning.
    AISTATS 2020, https://arxiv.org/abs/1807.00459). The column backdoor_success is the share of the test images of
    other classes that get the target label when they carry the trigger.

    The square is white (255) in the images as they are stored. So a client's order of pixels, augmentation and
    normalisation apply to it as to the image.

    Args:
        share: share of all clients that is malicious.
        poisoned: share of a malicious client's training samples that is poisoned, rounded to whole samples. They are
            drawn with the seed, once.
        target: the target class, from 0.
        size: side of the square, in pixels.
        scale: factor of the change that a malicious client sends. With (number of clients in a round) / (number of
            malicious ones among them) their mean replaces the model, if all clients have equal weights and the others
            no longer change it.
    """

    share: Share = 0.2
    poisoned: Probability = 0.5
    target: NonNegativeInt = 0
    size: PositiveInt = 3
    scale: PositiveFloat = 1.0

    @property
    def trigger(self) -> Trigger:
        return Trigger(self.size, self.target)

    @property
    def changes_updates(self) -> bool:
        return self.scale != 1

    def choose(self, samples: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.permutation(samples)[: round(self.poisoned * samples)]

    def poison(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        return np.full_like(labels, self.target)

    def change(self, change: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        return self.scale * change


class Collusion(Attack):
    """Base of the attacks whose clients know each other's changes and all send the same vector."""

    @abstractmethod
    def agree(self, changes: NDArray[np.float32], cohort: int) -> NDArray[np.float32]:
        """[c], what all malicious clients send, from c coordinates of their changes.

        Args:
            changes: [b, c], of the malicious clients of the round, in the order of their numbers.
            cohort: m, how many clients the round has.
        """

    def prepare(self, measure: Measure) -> None:
        """Called before `agree` on every rank, for what depends on all coordinates.

        Args:
            measure: a rule for c coordinates of the changes, [b, c] float64 -> [b, b] -> its sum over all
                coordinates.
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


@with_options
class IPM(Collusion):
    """Inner product manipulation: a small multiple of the mean of the malicious clients' honest changes, negated.

    Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation. UAI 2019.
    https://arxiv.org/abs/1903.03936

    Args:
        share: share of all clients that is malicious.
        epsilon: factor of the negated mean.
    """

    share: Share = 0.2
    epsilon: PositiveFloat = 0.1

    def agree(self, changes: NDArray[np.float32], cohort: int) -> NDArray[np.float32]:
        return (-self.epsilon * changes.astype(np.float64).mean(0)).astype(np.float32)


@with_options
class Hidden(Collusion):
    """Base of the attacks that move the mean of the malicious clients' honest changes as far as a bound allows.

    What is sent is mean + gamma p.

    Args:
        share: share of all clients that is malicious.
        perturbation: p, the direction in which the mean is moved: minus the standard deviation of each coordinate
            (std), the sign of the mean (sign), or the mean (unit).
    """

    share: Share = 0.2
    perturbation: Literal["std", "sign", "unit"] = "std"

    def prepare(self, measure: Measure) -> None:
        products = measure(lambda changes: changes @ changes.T)
        squares = products.diagonal()
        apart = np.maximum(squares[:, None] + squares - 2 * products, 0)
        # Of vectors that are centred at their mean, the product with p is that of the first, which is left out, too.
        moved = measure(self._moved)
        along = np.append(-moved[0, 1:].sum(), moved[0, 1:])
        to_mean = np.maximum(squares - 2 * products.mean(1) + products.mean(), 0)
        self.gamma = self.farthest(apart, to_mean, -along, float(moved[0, 0]))

    def agree(self, changes: NDArray[np.float32], cohort: int) -> NDArray[np.float32]:
        values = torch.from_numpy(changes).double()
        moved: NDArray[np.float32] = (values.mean(0) + self.gamma * self._direction(values)).float().numpy()
        return moved

    @abstractmethod
    def farthest(
        self, apart: NDArray[np.float64], to_mean: NDArray[np.float64], along: NDArray[np.float64], length: float
    ) -> float:
        """The largest gamma.

        Args:
            apart: [b, b] squared distances of the changes.
            to_mean, along: [b] |mean - change|^2, and <mean - change, p>.
            length: |p|^2.
        """

    def _direction(self, changes: Tensor) -> Tensor:
        """[c], of changes [b, c]; gamma makes up for the length."""
        if self.perturbation == "std":
            return -changes.std(0, correction=0)
        return -changes.mean(0).sign() if self.perturbation == "sign" else -changes.mean(0)

    def _moved(self, changes: Tensor) -> Tensor:
        """[b, b] products of centred changes, the first of which is replaced by p."""
        centred = changes - changes.mean(0)
        centred[0] = self._direction(changes)
        return centred @ centred.T


class MinMax(Hidden):
    """A change far from the mean, which is no further from any honest one than two honest ones are from each other.

    Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning. NDSS 2021. https://doi.org/10.14722/ndss.2021.24498

    The malicious clients of a round know their own honest changes, but not those of others. A single one sends its
    honest change.
    """

    def farthest(
        self, apart: NDArray[np.float64], to_mean: NDArray[np.float64], along: NDArray[np.float64], length: float
    ) -> float:
        # to_mean + 2 gamma along + gamma^2 length <= largest, for each change
        return min(larger_root(length, b, c - apart.max()) for b, c in zip(along, to_mean, strict=True))


class MinSum(Hidden):
    """A change far from the mean, whose squared distances to the honest ones sum up to no more than any of theirs.

    Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning. NDSS 2021. https://doi.org/10.14722/ndss.2021.24498

    The malicious clients of a round know their own honest changes, but not those of others. A single one sends its
    honest change.
    """

    def farthest(
        self, apart: NDArray[np.float64], to_mean: NDArray[np.float64], along: NDArray[np.float64], length: float
    ) -> float:
        # The terms with `along` add up to 0.
        return larger_root(len(to_mean) * length, 0.0, to_mean.sum() - apart.sum(1).max())


def larger_root(a: float, b: float, c: float) -> float:
    """The larger x with a x^2 + 2 b x + c = 0, for c at most 0; 0 if a is 0."""
    return (-b + math.sqrt(max(b * b - a * c, 0))) / a if a > 0 else 0.0


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
