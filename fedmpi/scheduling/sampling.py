"""Who takes part in a round. Every rank draws the same cohort from the same stream, without a message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.training.block import Block

Weighting = Literal["samples", "uniform"]


@dataclass(frozen=True)
class Cohort:
    """The clients of a round.

    Attributes:
        clients: [m] int64, ascending, each once.
        samples: [m] int64, their training samples.
        mass: [m] int64, what each counts in a mean over the cohort; 0 for one without samples.
        completed: [m] float64, the share of the local training that each gets done; None: all.
    """

    clients: NDArray[np.int64]
    samples: NDArray[np.int64]
    mass: NDArray[np.int64]
    completed: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def total_mass(self) -> int:
        return int(self.mass.sum())

    @property
    def weights(self) -> NDArray[np.float64]:
        """[m] shares in the mean; a quotient of integers, so the same bits on every rank."""
        return self.mass / max(self.total_mass, 1)

    @classmethod
    def nobody(cls) -> Cohort:
        """For measuring before the first round."""
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none)

    def pooled(self, everyone: NDArray[np.int64], by_steps: bool) -> Cohort:
        """One client, number 0, with everybody's samples, who works as much as these would.

        Args:
            everyone: [clients] training samples of each.
            by_steps: the work is counted in optimizer steps, which each of these clients would do; else in passes.
        """
        total = everyone.sum(keepdims=True)
        work = len(self) if by_steps else self.samples.sum() / total[0]
        return Cohort(np.zeros(1, dtype=np.int64), total, total, np.array([work], dtype=np.float64))

    def subset(self, positions: NDArray[np.int64]) -> Cohort:
        """The members at these positions."""
        completed = None if self.completed is None else self.completed[positions]
        return Cohort(self.clients[positions], self.samples[positions], self.mass[positions], completed)

    def block(self, positions: NDArray[np.int64]) -> Block:
        """The members at these positions, to be trained together."""
        some = self.subset(positions)
        return Block(some.clients, some.samples, some.mass, completed=some.completed)


def masses(samples: NDArray[np.int64], weighting: Weighting) -> NDArray[np.int64]:
    """[clients] what each of all clients counts in a mean; 0 for one without samples."""
    return samples if weighting == "samples" else (samples > 0).astype(np.int64)


class Sampler(ABC):
    """Base of the rules by which clients are chosen."""

    #: Set by a rule that draws clients in proportion to their samples: a weighted mean would count them twice.
    weighting: Weighting | None = None

    @abstractmethod
    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Choose clients for a round.

        Args:
            round: counts from 1.
            size: of the cohort, at most the number of clients.
            samples: [clients] training samples of each client.
            rng: of this round.

        Returns:
            Numbers of clients; one that stands there twice counts twice in the mean.
        """

    def cohort(self, round: int, size: int, samples: NDArray[np.int64], weighting: Weighting, seed: int) -> Cohort:
        """The cohort of a round, the same on every rank."""
        drawn = self.draw(round, size, samples, randomness.stream(seed, "cohort", round))
        clients, times = np.unique(drawn, return_counts=True)
        mass = times * masses(samples, self.weighting or weighting)[clients]
        return Cohort(clients, samples[clients], mass)


class Uniform(Sampler):
    """A fixed number of clients, uniformly, without replacement."""

    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.choice(len(samples), size, replace=False)


class Bernoulli(Sampler):
    """Every client with probability cohort / clients, independently; drawn again if nobody comes."""

    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        chosen = np.empty(0, dtype=np.int64)
        while not len(chosen):  # empty with probability at most 1/e, for size >= 1
            chosen = np.flatnonzero(rng.random(len(samples)) < size / len(samples))
        return chosen


class All(Sampler):
    """Every client in every round."""

    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return np.arange(len(samples))


class RoundRobin(Sampler):
    """The clients in turn, by number."""

    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return ((round - 1) * size + np.arange(size)) % len(samples)


class Weighted(Sampler):
    """With replacement, in proportion to the clients' samples, for a plain mean.

    The expected mean is that over all clients weighted by samples (Li et al., 2020, scheme I). A client drawn twice
    trains once and counts twice.
    """

    weighting: Weighting | None = "uniform"

    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.choice(len(samples), size, replace=True, p=samples / samples.sum())
