"""Waiting for other ranks: a waiting rank sleeps, so that others can use its core, and checks for failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedmpi.mpi.bell import Bell
from fedmpi.mpi.failures import Failures
from fedmpi.mpi.guard import Guard

SPIN_SECONDS = 50e-6
SHORTEST_SLEEP = 20e-6
LONGEST_SLEEP = 5e-3
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
        seconds: total time that this rank has waited.
    """

    def __init__(self, bell: Bell, failures: Failures, guard: Guard, crowd: float) -> None:
        self.seconds = 0.0
        self._bell = bell
        self._failures = failures
        self._guard = guard
        self._shortest_sleep = SHORTEST_SLEEP * (crowd * crowd - 1)
        self._busy_until = 0.0

    def expect(self, seconds: float) -> None:
        """Announce that other ranks are busy for about this time, so that this rank checks less often."""
        self._busy_until = time.perf_counter() + CERTAIN * seconds

    def poll(self, is_over: Callable[[], bool]) -> None:
        """Spin for microseconds, then sleep for increasing times up to 5 ms.

        For conditions that only MPI can check.
        """
        with self._counted() as elapsed:
            while not is_over():
                if elapsed() > SPIN_SECONDS:
                    self._failures.raise_any()
                    self._nap(elapsed())

    def meet(self, is_over: Callable[[], bool], ring: int) -> None:
        """Sleep until ranks of this node have made a condition true.

        The rank that does so wakes the others by `ring`.
        """
        if is_over():
            self._bell.ring(ring)
            self._guard.passed()
            return
        with self._counted() as elapsed:
            while True:
                last = self._bell.last
                if is_over():
                    return
                if elapsed() > SPIN_SECONDS:
                    self._failures.raise_any()
                    if elapsed() < NAPS_SECONDS:
                        self._nap(elapsed())
                    else:
                        self._bell.sleep(last, LONGEST_DEAFNESS)

    def _nap(self, elapsed: float) -> None:
        """The time to sleep: longer after longer waiting, and at least until the others are expected."""
        over = time.perf_counter() - self._busy_until
        nap = -over if over < 0 else max(min(elapsed, over) / 20, self._shortest_sleep)
        time.sleep(min(nap, LONGEST_SLEEP))

    @contextmanager
    def _counted(self) -> Iterator[Callable[[], float]]:
        """Count the time as waiting; yields a function that returns the seconds so far."""
        started = time.perf_counter()
        yield lambda: time.perf_counter() - started
        self.seconds += time.perf_counter() - started
        self._guard.passed()
