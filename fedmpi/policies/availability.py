"""Which clients can be reached in a round: pure functions of (seed, round, client), the same on every rank."""

from abc import abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.errors import require
from fedmpi.options import Configured, with_options
from fedmpi.policies.lists import check_numbers, read_lists
from fedmpi.ranges import PositiveFloat, Probability, UpToOne


class Availability(metaclass=Configured):
    """Base of the availability models. The sampler chooses among the clients that can be reached."""

    def check(self, clients: int) -> None:
        """Raise BadInput if the options do not fit this number of clients."""

    @abstractmethod
    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        """[clients] whether each client can be reached in a round. Rounds are numbered from 1."""


class Always(Availability):
    """Every client can be reached in every round."""

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return np.ones(clients, dtype=bool)


@with_options
class Independent(Availability):
    """Each client can be reached with the same probability, independently in every round.

    Args:
        share: the probability.
    """

    share: Probability = 0.8

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return randomness.uniform(seed, "availability", round, np.arange(clients)) < self.share


@with_options
class Markov(Availability):
    """A two-state Markov chain per client, in equilibrium from the first round on.

    In each round, with probability 1 / (share absence), a client's state is drawn again, and is then present with
    probability `share`. Otherwise its state does not change.

    Args:
        share: share of the rounds in which a client is present, in the long run; above 0.
        absence: mean length of an absence in rounds; at least 1 / share, where rounds are independent.
    """

    share: UpToOne = 0.8
    absence: float = 5.0

    def __post_init__(self) -> None:
        least = 1 / self.share
        require(least <= self.absence < float("inf"), "absence", self.absence, f"at least 1 / share, {least:g}")

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        # Search backwards for the last round in which the state was drawn, so that no state is kept between rounds.
        state, unknown = np.zeros(clients, dtype=bool), np.arange(clients)
        while len(unknown):
            drawn = randomness.uniform(seed, "availability", round, unknown) < self.share
            changes = randomness.uniform(seed, "availability changes", round, unknown) * self.share * self.absence < 1
            changes |= round == 1
            state[unknown[changes]] = drawn[changes]
            unknown, round = unknown[~changes], round - 1
        return state


@with_options
class Diurnal(Availability):
    """Day and night: the probability is a sine of the round, shifted by the client's time zone.

    The mean is `share`, and the amplitude is the smaller of share and 1 - share.

    Args:
        share: the mean probability.
        period: rounds per day.
    """

    share: Probability = 0.5
    period: PositiveFloat = 24.0

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        zone = randomness.uniform(seed, "time zone", 0, np.arange(clients))
        swing = min(self.share, 1 - self.share) * np.sin(2 * np.pi * (round / self.period + zone))
        return randomness.uniform(seed, "availability", round, np.arange(clients)) < self.share + swing


@with_options
class Trace(Availability):
    """The clients that a file names for each round; at its end the file starts again.

    Args:
        file: text file with one line per round: the numbers of the clients that can be reached; # begins a comment.
    """

    file: Path

    def __post_init__(self) -> None:
        self._rounds = read_lists(self.file)

    def check(self, clients: int) -> None:
        check_numbers(self._rounds, "availability.file", self.file, clients)

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return np.isin(np.arange(clients), self._rounds[(round - 1) % len(self._rounds)])
