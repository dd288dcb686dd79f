"""Waiting for other ranks: a waiting rank sleeps, so that others can use its core, and checks for failures."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedmpi.mpi.bell import Bell
from fedmpi.mpi.failures import Failures
from fedmpi.mpi.guard import Guard

SPIN_SECONDS = 50e-6
SHORTEST_SLEEP = 20e-6
# While others are expected to be busy, and after that. A look at MPI costs about 10 us, so that a rank that waits for
# other nodes takes 1 % of a core.
LONGEST_SLEEP, LONGEST_NAP = 5e-3, 1e-3
# A woken rank tends to run on the core of the rank that wakes it, which then has to wait. So short sleeps are better
# for short waits.
NAPS_SECONDS = 20e-3
# The part of the expected busy time of ranks that is certain.
CERTAIN = 0.9
# The time after which a rank that waits for others of its node notices a failure.
LONGEST_DEAFNESS = 50e-3


class Waiting:
    """The waiting of one rank.

    Args:
        bell: of this node.
        failures: raises failures that are reported while this rank waits.
        guard: is informed when ranks have met.
        crowd: number of ranks per core, at least 1. If ranks share a core, they check less often, to leave it to the
            ranks they wait for.

    Attributes:
        seconds: total time that this rank has waited. The time in which data arrive or leave does not count.
    """

    def __init__(self, bell: Bell, failures: Failures, guard: Guard, crowd: float) -> None:
        self.seconds = 0.0
        self._bell = bell
        self._failures = failures
        self._guard = guard
        self._shortest_sleep = SHORTEST_SLEEP * (crowd * crowd - 1)
        self._busy_until = 0.0
        self._first_moved = self._last_moved = 0.0

    def expect(self, seconds: float) -> None:
        """Announce that other ranks are busy for about this time, so that this rank checks less often."""
        self._busy_until = time.perf_counter() + CERTAIN * seconds

    def poll(self, is_over: Callable[[], bool]) -> None:
        """Wait for something that only MPI can check: spin for microseconds, then sleep for increasing times.

        `is_over` calls `moved` if something happens that is a part of what this rank waits for. Sleeps are short
        again then, and the waiting time ends.
        """
        started = time.perf_counter()
        self._first_moved = self._last_moved = 0.0
        while not is_over():
            still = time.perf_counter() - max(started, self._last_moved)
            if still > SPIN_SECONDS:
                self._failures.raise_any()
                self._nap(still)
        self.seconds += (self._first_moved or time.perf_counter()) - started
        self._guard.passed()

    def moved(self) -> None:
        """Called while this rank waits: some of the data have arrived or left."""
        self._last_moved = time.perf_counter()
        self._first_moved = self._first_moved or self._last_moved
        self._guard.passed()  # long transfers are no silence

    def meet(self, is_over: Callable[[], bool]) -> None:
        """Sleep until ranks of this node have made a condition true; they ring the bell when they do."""
        started = time.perf_counter()
        while True:
            last = self._bell.last
            if is_over():
                break
            elapsed = time.perf_counter() - started
            if elapsed > SPIN_SECONDS:
                self._failures.raise_any()
                if elapsed < NAPS_SECONDS:
                    self._nap(elapsed)
                else:
                    self._bell.sleep(last, LONGEST_DEAFNESS)
        self.seconds += time.perf_counter() - started
        self._guard.passed()

    def _nap(self, elapsed: float) -> None:
        """The time to sleep: longer after longer waiting, and at least until the others are expected."""
        over = time.perf_counter() - self._busy_until
        nap = -over if over < 0 else max(min(min(elapsed, over) / 20, LONGEST_NAP), self._shortest_sleep)
        time.sleep(min(nap, LONGEST_SLEEP))
