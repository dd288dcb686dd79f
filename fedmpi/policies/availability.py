"""Which clients can be reached: pure functions of (seed, round or time, client), the same on every rank."""

from abc import abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi import randomness
from fedmpi.errors import BadInput, named, require
from fedmpi.options import Configured, with_options
from fedmpi.policies.clock import to_ticks
from fedmpi.policies.lists import check_numbers, read_lists
from fedmpi.policies.traces import read_table
from fedmpi.ranges import PositiveFloat, Probability, UpToOne


class Availability(metaclass=Configured):
    """Base of the availability models. The sampler chooses among the clients that can be reached."""

    #: Whether `present` takes the time on the virtual clock, in ticks (`clock.TICKS`), instead of the round.
    by_clock = False
    #: Whether a client that goes away during its job of asynchronous training does not end it. Only with `by_clock`.
    interrupts: bool = False

    def check(self, clients: int) -> None:
        """Raise BadInput if the options do not fit this number of clients."""

    @abstractmethod
    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        """[clients] whether each client can be reached in a round. Rounds are numbered from 1."""

    def reachable(self, when: int, clients: int, seed: int) -> NDArray[np.bool_]:
        """[clients] what `present` returns, for a round, or for a tick if `by_clock`.

        Raises:
            BadInput: this is no mask of the clients.
        """
        found = self.present(when, clients, seed)
        kind, shape = str(getattr(found, "dtype", type(found).__name__)), np.shape(found)
        if kind != "bool" or shape != (clients,):
            given = f"present() returned {kind} of shape {shape}: must return a bool array of shape ({clients},)"
            raise BadInput(f"= {named(self)}: {given}", "--availability")
        return found

    def arrival(self, now: int, waiting: NDArray[np.bool_], seed: int) -> int | None:
        """What `next_arrival` returns.

        Raises:
            BadInput: this is no later tick.
        """
        later = self.next_arrival(now, waiting, seed)
        if later is not None and not later > now:
            given = f"next_arrival() returned {later}: must return a tick after {now}, or None"
            raise BadInput(f"= {named(self)}: {given}", "--availability")
        return later

    def next_arrival(self, now: int, waiting: NDArray[np.bool_], seed: int) -> int | None:
        """The first tick after `now` at which one of the waiting clients becomes available; None: never.

        Only for models with `by_clock`.

        Args:
            waiting: [clients] which of all clients are waited for.
        """
        return None

    def departure(self, client: int, now: int, clients: int, seed: int) -> int | None:
        """The first tick after `now` at which a client that can be reached goes away; None: never.

        Only for models with `by_clock`.

        Args:
            clients: number of all clients.
        """
        return None


class Always(Availability):
    """Every client can be reached in every round."""

    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return np.broadcast_to(np.True_, clients)


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
        absence: mean length of an absence in rounds; at least 1 / share. With 1 / share, rounds are independent.
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


@with_options
class Intervals(Availability):
    """Clients that can be reached at times of the virtual clock, which a file lists.

    Args:
        path: CSV file with the columns client, begin and end. The client can be reached from begin to before end, in
            virtual seconds. Lines may have any order.
        period: virtual seconds after which the times of the file are repeated; null: after its last end, a client can
            not be reached any more.
        assign: client: the column client has the numbers of clients, and others can never be reached. draw: it has
            numbers of devices, and for each client one of the devices in the file is drawn.
        interrupts: in asynchronous training, whether a job is lost if the client's interval ends first. If so, the
            job counts as dropped, and another client can start at that time.
    """

    path: Path
    period: PositiveFloat | None = None
    assign: Literal["client", "draw"] = "client"
    interrupts: bool = False

    by_clock = True

    def __post_init__(self) -> None:
        self._table = table = read_table(self.path, ("client", "begin", "end"))
        begin, end = table.columns["begin"], table.columns["end"]
        table.refuse(begin < 0, "begin", "at least 0")
        table.refuse(end <= begin, "end", "above begin")
        if self.period is not None:
            table.refuse(end > self.period, "end", f"at most the period, {self.period:.16g}")
        order = np.lexsort((begin, table.columns["client"]))
        clients = table.columns["client"][order]
        overlaps = (clients[1:] == clients[:-1]) & (begin[order][1:] < end[order][:-1])
        wrong = np.zeros(len(table), dtype=bool)
        wrong[order[1:][overlaps]] = True
        table.refuse(wrong, "begin", "at least the end of the same client's interval before")
        begin, end = to_ticks(begin)[order], to_ticks(end)[order]
        is_first = np.append(
            True, (clients[1:] != clients[:-1]) | (begin[1:] > end[:-1])
        )  # intervals that touch are one
        self._begin, self._end = begin[is_first], end[np.append(is_first[1:], True)]
        self._numbers, devices = np.unique(clients[is_first], return_inverse=True)
        self._period = None if self.period is None else max(int(to_ticks(self.period)), 1)
        # One sorted list for all devices: the device first, then the rank of the interval's begin among all begins.
        self._begins = np.unique(self._begin)
        self._keys = devices * (len(self._begins) + 1) + np.searchsorted(self._begins, self._begin)

    def check(self, clients: int) -> None:
        if self.assign == "client":
            numbers = self._table.columns["client"]
            allowed = f"below the number of clients, {clients}"
            self._table.refuse(numbers >= clients, "client", allowed, "availability.path")

    def present(self, now: int, clients: int, seed: int) -> NDArray[np.bool_]:
        """[clients] whether each client can be reached at this tick."""
        devices = self._assign(clients, seed)
        time = now if self._period is None else now % self._period
        last = self._last_begun(devices, time)
        return (devices >= 0) & (last >= self._first(devices)) & (time < self._end[last])

    def next_arrival(self, now: int, waiting: NDArray[np.bool_], seed: int) -> int | None:
        devices = self._assign(len(waiting), seed)[waiting]
        devices = devices[devices >= 0]
        if not len(devices):
            return None
        time = now if self._period is None else now % self._period
        following = self._last_begun(devices, time) + 1
        is_there = following < self._first(devices + 1)
        later = self._begin[following[is_there]] - time
        if self._period is not None:
            later = np.append(later, self._begin[self._first(devices)] - time + self._period)
        return now + int(later.min()) if len(later) else None

    def departure(self, client: int, now: int, clients: int, seed: int) -> int | None:
        device = self._assign(clients, seed)[client : client + 1]
        time = now if self._period is None else now % self._period
        first, last = int(self._first(device)[0]), int(self._last_begun(device, time)[0])
        left = int(self._end[last]) - time
        if self._end[last] == self._period and self._begin[first] == 0:  # it stays over the end of the period
            if first == last:
                return None
            left += int(self._end[first])
        return now + left

    def _assign(self, clients: int, seed: int) -> NDArray[np.int64]:
        """[clients] the place of each client's device among the sorted numbers; -1: it has none."""
        everyone = np.arange(clients)
        if self.assign == "draw":
            share = randomness.uniform(seed, "device times", 0, everyone)
            return (share * len(self._numbers)).astype(np.int64)
        places = np.minimum(np.searchsorted(self._numbers, everyone), len(self._numbers) - 1)
        return np.where(self._numbers[places] == everyone, places, -1)

    def _first(self, devices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each device's first interval."""
        return np.searchsorted(self._keys, devices * (len(self._begins) + 1))

    def _last_begun(self, devices: NDArray[np.int64], time: int) -> NDArray[np.int64]:
        """The place of the last interval of each device, or of one before it, that has begun at this tick."""
        rank = np.searchsorted(self._begins, time, side="right") - 1
        return np.searchsorted(self._keys, devices * (len(self._begins) + 1) + rank, side="right") - 1
