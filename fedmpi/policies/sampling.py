"""Which clients are asked to take part in a round. Every rank draws the same cohort, without communication.

`World.vouch` compares the ranks' cohorts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmpi import randomness
from fedmpi.arrays import read_only
from fedmpi.checksum import checksum
from fedmpi.errors import BadInput, named, require
from fedmpi.options import Configured, with_options
from fedmpi.policies.lists import check_numbers, read_lists
from fedmpi.ranges import PositiveInt
from fedmpi.training.block import Block

#: Clients that are looked at together.
AT_ONCE = 1 << 20

Weighting = Literal["samples", "uniform", "horvitz_thompson"]


@dataclass(frozen=True)
class Inclusion:
    """Probabilities of clients to be in a cohort, for Horvitz-Thompson weights.

    Attributes:
        chance: the probability that a client is drawn and that its update is used, the same for all of `available`.
        available: [a] int64, the clients that can be reached in this round. All others have probability 0.
    """

    chance: float
    available: NDArray[np.int64]

    def expected(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """[...] the expected sum over a cohort of these values [clients, ...]."""
        return np.asarray(self.chance * numbers[self.available].sum(0).astype(np.float64))

    def thinned(self, arrival: float) -> Inclusion:
        """The same if each member's update is used only with this probability."""
        return replace(self, chance=self.chance * arrival)


@dataclass(frozen=True)
class Cohort:
    """The clients of a round.

    Attributes:
        clients: [m] int64, ascending, each once.
        samples: [m] int64, their training samples.
        mass: [m] int64, weight of each client in a mean over the cohort; 0 for a client without samples.
        completed: [m] float64, the share of the local training that each client completes; None: all of it.
        expected_mass: what a mean is divided by instead of the sum of weights. The old model gets the difference as
            its weight. None: the sum of weights.
        inclusion: for Horvitz-Thompson weights, the probabilities that they are computed from; else None.
    """

    clients: NDArray[np.int64]
    samples: NDArray[np.int64]
    mass: NDArray[np.int64]
    completed: NDArray[np.float64] | None = None
    expected_mass: float | None = None
    inclusion: Inclusion | None = None

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def total_mass(self) -> int:
        return int(self.mass.sum())

    @property
    def checksum(self) -> int:
        """Of everything that must be equal on all ranks. It is not kept, because user code may change the arrays."""
        columns = self.clients, self.samples, self.mass, self.completed, self.expected_mass
        return checksum(*(column for column in columns if column is not None))

    @property
    def weights(self) -> NDArray[np.float64]:
        """[m] weights in the mean that sum to 1; quotients of integers, so bit-identical on every rank."""
        return self.mass / max(self.total_mass, 1)

    @classmethod
    def nobody(cls) -> Cohort:
        """An empty cohort, for evaluations before the first round."""
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none)

    def pooled(self, everyone: NDArray[np.int64], by_steps: bool) -> Cohort:
        """One client, number 0, with the samples of all clients, that does as much work as this cohort.

        Args:
            everyone: [clients] training samples of each.
            by_steps: whether the work is counted in optimizer steps per client; else in passes.
        """
        total = everyone.sum(keepdims=True)
        work = len(self) if by_steps else self.samples.sum() / total[0]
        return Cohort(np.zeros(1, dtype=np.int64), total, total, np.array([work], dtype=np.float64))

    def subset(self, positions: NDArray[np.int64]) -> Cohort:
        """The members at these positions."""
        completed = None if self.completed is None else self.completed[positions]
        clients, samples, mass = (column[positions] for column in (self.clients, self.samples, self.mass))
        return replace(self, clients=clients, samples=samples, mass=mass, completed=completed)

    def expecting(self, inclusion: Inclusion, masses: NDArray[np.int64]) -> Cohort:
        """The cohort with Horvitz-Thompson weights, from these weights [clients] and probabilities."""
        return replace(self, expected_mass=float(inclusion.expected(masses)), inclusion=inclusion)

    def block(self, positions: NDArray[np.int64]) -> Block:
        """The members at these positions, to be trained together."""
        completed = None if self.completed is None else self.completed[positions]
        return Block(self.clients[positions], self.samples[positions], self.mass[positions], completed=completed)


def masses(samples: NDArray[np.int64], weighting: Weighting) -> NDArray[np.int64]:
    """Weights in a mean of clients with these numbers of samples; 0 for a client without samples."""
    return (samples > 0).astype(np.int64) if weighting == "uniform" else samples


@dataclass(frozen=True)
class Pool:
    """The clients that a sampler may choose from, and what it knows about them.

    Where all clients can be reached, a sampler that does without `available` and `label_counts` needs no memory per
    client.

    Args:
        samples: [clients] training samples of each client.
        count_labels: gives `label_counts`.
        reachable: [a] int64, ascending: the clients that can be reached in this round; None: all.
        may_be_empty: whether an empty cohort stays empty, because the cost of privacy is computed for a single draw.
    """

    samples: NDArray[np.int64]
    count_labels: Callable[[], NDArray[np.int64]]
    reachable: NDArray[np.int64] | None = None
    may_be_empty: bool = False

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """[clients, classes] training labels of each client."""
        return self.count_labels()

    @cached_property
    def available(self) -> NDArray[np.int64]:
        """[a] int64, ascending: the clients that can be reached in this round."""
        return read_only(np.arange(len(self.samples)) if self.reachable is None else self.reachable)

    @property
    def size(self) -> int:
        """Number of clients that can be reached."""
        return len(self.samples) if self.reachable is None else len(self.reachable)

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """`available[places]`"""
        return places if self.reachable is None else self.reachable[places]

    def place(self, clients: ArrayLike) -> NDArray[np.int64]:
        """Places in `available` of the first client that is not below each of these."""
        clients = np.asarray(clients)
        return clients if self.reachable is None else np.searchsorted(self.reachable, clients)

    def has(self, clients: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these numbers are of clients that can be reached."""
        if self.reachable is None:
            return (clients >= 0) & (clients < len(self.samples))
        return np.searchsorted(self.reachable, clients, "left") < np.searchsorted(self.reachable, clients, "right")


class Sampler(metaclass=Configured):
    """Base of the samplers."""

    #: Set by samplers that draw clients in proportion to their samples, because a weighted mean would count samples
    #: twice.
    weighting: Weighting | None = None

    def clients_per_round(self, cohort: int | None, clients: int) -> int:
        """The number of clients in a round, by the option `cohort`; None: the sampler's own number.

        Raises:
            BadInput: the sampler cannot draw so many.
        """
        require(cohort is None or cohort <= clients, "cohort", cohort, f"at most the number of clients, {clients}")
        return cohort or min(10, clients)

    def check(self, clients: int, cohort: int) -> None:
        """Raise BadInput if the options do not fit the number of clients or the size of a cohort."""

    @abstractmethod
    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        """Choose clients for a round.

        Args:
            round: its number; the first is 1.
            size: of the cohort, at least 1 and at most the number of available clients.
            pool: the clients to choose from.
            rng: the random numbers of this round.

        Returns: Numbers of available clients. One that is listed twice counts twice in the mean.
        """

    def choose(self, drawn: Cohort, size: int, losses: Callable[[], NDArray[np.float64]]) -> Cohort:
        """Which of the drawn clients are asked: all, unless the sampler looks at their losses first.

        Args:
            size: of the cohort.
            losses: [m], the global model's loss on the training samples of each drawn client, which receives the
                model for it. A collective: must be called on every rank or on none.
        """
        return drawn

    def chance(self, size: int, of: int) -> float | None:
        """The probability that an available client is drawn; None: it is not the same for all, or not known.

        A subclass that draws in another way does not inherit it.
        """
        return None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "draw" in vars(cls) and "chance" not in vars(cls):
            cls.chance = Sampler.chance  # type: ignore[method-assign]

    def drawn(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        """What `draw` returns.

        Raises:
            BadInput: these are not numbers of available clients.
        """
        found = np.asarray(self.draw(round, size, pool, rng))
        if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
            given = f"{found.dtype} of shape {found.shape}: must return a list of clients' numbers"
            raise BadInput(f"= {named(self)}: draw() returned {given}", "--sampler")
        clients = found.astype(np.int64, copy=False)
        if clients is not pool.reachable and not (is_there := pool.has(clients)).all():
            wrong, count = int(clients[~is_there][0]), len(pool.samples)
            allowed = f"0 to {count - 1}" if not 0 <= wrong < count else "a client that can be reached in this round"
            given = f"drew client {wrong} in round {round}: must be {allowed}"
            raise BadInput(f"= {named(self)}: {given}", "--sampler")
        return clients

    def cohort(self, round: int, size: int, pool: Pool, weighting: Weighting, seed: int) -> Cohort:
        """The clients that are drawn in a round, the same on every rank; fewer than `size` if fewer are available.

        Raises:
            BadInput: the sampler drew others than available clients.
        """
        if not pool.size:
            return Cohort.nobody()
        size = min(size, pool.size)
        drawn = self.drawn(round, size, pool, randomness.stream(seed, "cohort", round))
        clients, times = np.unique(drawn, return_counts=True)
        samples = pool.samples[clients]
        mass = times * masses(samples, self.weighting or weighting)
        cohort = Cohort(clients, samples, mass)
        chance = self.chance(size, pool.size) if weighting == "horvitz_thompson" else None
        return cohort if chance is None else cohort.expecting(Inclusion(chance, pool.available), pool.samples)


class Uniform(Sampler):
    """A fixed number of clients, uniformly, without replacement."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return pool.at(rng.choice(pool.size, size, replace=False))

    def chance(self, size: int, of: int) -> float | None:
        return size / of


class Bernoulli(Sampler):
    """Every client with probability cohort / clients, independently.

    An empty cohort is drawn again. With `--privacy` it stays empty, and the round only adds noise.
    """

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        while True:
            parts = [
                first + np.flatnonzero(rng.random(min(AT_ONCE, pool.size - first)) < size / pool.size)
                for first in range(0, pool.size, AT_ONCE)
            ]
            chosen = pool.at(np.concatenate(parts))
            if len(chosen) or pool.may_be_empty:  # empty with probability at most 1/e, for size >= 1
                return chosen

    def chance(self, size: int, of: int) -> float | None:
        share = size / of
        return share / (1 - (1 - share) ** of)  # given that the cohort is not empty


class All(Sampler):
    """Every client in every round."""

    def clients_per_round(self, cohort: int | None, clients: int) -> int:
        require(cohort in (None, clients), "cohort", cohort, f"null or {clients}, the number of clients, with All")
        return clients

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return pool.available

    def chance(self, size: int, of: int) -> float | None:
        return 1.0


class RoundRobin(Sampler):
    """The clients in turn, by number; clients that cannot be reached are skipped."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        first = pool.place((round - 1) * size % len(pool.samples))
        return pool.at((first + np.arange(size)) % pool.size)


class Weighted(Sampler):
    """Drawn with replacement, in proportion to the clients' samples; updates are averaged with equal weights.

    The expected mean is the mean over all clients weighted by samples (Li et al., 2020, scheme I). A client that is
    drawn twice trains once and counts twice.
    """

    weighting = "uniform"

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        samples = pool.samples[pool.available]
        if not samples.any():
            return pool.available[:0]
        return rng.choice(pool.available, size, replace=True, p=samples / samples.sum())


class Stratified(Sampler):
    """A fixed number of clients; those with the same most frequent label get a number in proportion to theirs.

    Clients with the same most frequent label are a stratum. Its number is rounded up or down. Every client has the
    same probability, cohort / clients: the strata are listed one after another, shuffled within each, and every
    (clients / cohort)th client of the list is taken, from a random start.
    """

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        stratum = pool.label_counts[pool.available].argmax(1)
        order = np.lexsort((rng.random(pool.size), stratum))
        places = (rng.integers(pool.size) + pool.size * np.arange(size)) // size
        return pool.available[order[places]]

    def chance(self, size: int, of: int) -> float | None:
        return size / of


@with_options
class PowerOfChoice(Sampler):
    """The candidates with the highest loss of the global model; updates are averaged with equal weights.

    Cho, Wang, Joshi: Towards Understanding Biased Client Selection in Federated Learning. AISTATS 2022.
    https://arxiv.org/abs/2010.01243 (pi_pow-d). Candidates are drawn without replacement, in proportion to their
    samples, and all of them receive the model. Computing their losses costs no virtual time.

    Args:
        candidates: number of candidates; null: twice the cohort.
    """

    candidates: PositiveInt | None = None

    weighting = "uniform"

    def check(self, clients: int, cohort: int) -> None:
        candidates = cohort if self.candidates is None else self.candidates
        require(candidates >= cohort, "sampler.candidates", candidates, f"at least the cohort, {cohort}")
        require(candidates <= clients, "sampler.candidates", candidates, f"at most the number of clients, {clients}")

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        able = pool.available[pool.samples[pool.available] > 0]
        number = min(max(self.candidates or 2 * size, size), len(able))
        chances = pool.samples[able] / max(pool.samples[able].sum(), 1)
        return rng.choice(able, number, replace=False, p=chances) if number else able

    def choose(self, drawn: Cohort, size: int, losses: Callable[[], NDArray[np.float64]]) -> Cohort:
        worst = np.argsort(-losses(), kind="stable")[:size]
        return drawn.subset(np.sort(worst))


@with_options
class FixedList(Sampler):
    """The clients that a file names for each round; at its end the file starts again.

    Args:
        file: text file with one line per round: the numbers of its clients; # begins a comment.
    """

    file: Path

    def __post_init__(self) -> None:
        self._rounds = read_lists(self.file)

    def clients_per_round(self, cohort: int | None, clients: int) -> int:
        most = max(1, *(len(np.unique(named)) for named in self._rounds))
        allowed = f"null or {most}, the most clients of a round in {self.file}"
        require(cohort in (None, most), "cohort", cohort, allowed)
        return most

    def check(self, clients: int, cohort: int) -> None:
        check_numbers(self._rounds, "sampler.file", self.file, clients)

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        named = self._rounds[(round - 1) % len(self._rounds)]
        return named if pool.reachable is None else named[np.isin(named, pool.reachable)]
