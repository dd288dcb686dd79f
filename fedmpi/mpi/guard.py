"""A thread that ends this process if its main thread cannot.

The main thread may be inside an MPI call to a node that has vanished, or in user code that never returns. Python
handles signals only in the main thread, so nothing would end such a process. The guard is another thread. It ends the
process if other ranks do not arrive within the deadline, and at a second signal.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

#: Longest waiting time in seconds before the length of rounds is known.
FIRST_DEADLINE = 30 * 60.0
#: Seconds from one look of the guard to the next.
TICK = 0.5
#: The most that one look adds to the counted time, so that the time of a suspended job does not count.
LONGEST_TICK = 5.0
#: Seconds that the main thread has to notice that the deadline has passed, before the guard acts in its place.
REACTION = 1.5
#: Seconds for the report of a process and MPI_Abort together.
ENDING = 5.0
#: A second signal counts only this number of seconds after the first, because launchers may forward a signal twice.
REPEATED = 0.5
#: Number of calls of the main thread that are shown.
INNERMOST = 5
#: Signals that end the process when they come again.
INSISTENT = (signal.SIGTERM, signal.SIGINT)
#: The main thread is in this folder while it waits for other ranks.
_ROOM = Path(__file__).parent
_nowhere: TextIO


class Guard:
    """Watches the time since this rank last met the others, and signals.

    Attributes:
        is_alone: whether there is no other rank to wait for.
        limit: seconds after which a waiting rank gives up.
        exceeded: the limit when this rank gave up; None: it has not given up.
        at_silence: function that the guard then calls if the main thread does not react; it must end the process.
        in_run: whether all of this rank's time counts. Within a run it does, because code that runs longer than the
            limit makes all others wait. Outside of a run only waiting counts.
    """

    def __init__(self) -> None:
        self.is_alone = False
        self.limit = FIRST_DEADLINE
        self.exceeded: float | None = None
        self.at_silence: Callable[[], None] = lambda: os._exit(1)
        self.in_run = False
        self._silence = 0.0
        self._noticed = threading.Event()
        self._ends = threading.Lock()
        self._main = threading.main_thread()
        self._heard: dict[int, float] = {}
        self._signals: int | None = None  # where the interpreter writes the numbers of signals

    def start(self) -> None:
        """Start the thread."""
        self._listens, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        threading.Thread(target=self._watch, name="guard", daemon=True).start()

    def passed(self) -> None:
        """Called by the main thread when it has met the other ranks."""
        if self.exceeded:
            threading.Event().wait()  # too late: the guard is ending the process
        self._silence = 0.0

    def expire(self) -> None:
        """Give up waiting."""
        self.exceeded = self.exceeded or self.limit

    def begin_end(self) -> None:
        """Called by the thread that ends the process, so that the other thread does not interfere."""
        if not self.is_alone and not self._ends.acquire(blocking=False):
            threading.Event().wait()
        self._noticed.set()

    @contextmanager
    def running(self, at_silence: Callable[[], None]) -> Iterator[None]:
        """The context of a run, in which a second SIGTERM or SIGINT ends the process at once.

        Args:
            at_silence: see the attribute.
        """
        before = self.in_run, self.at_silence, self.limit
        listens = self._signals is not None and self._main is threading.current_thread()
        replaced = signal.set_wakeup_fd(self._signals or -1, warn_on_full_buffer=False) if listens else -1
        self._silence = 0.0
        self.in_run, self.at_silence = True, at_silence
        try:
            yield
        finally:
            self.in_run, self.at_silence, self.limit = before
            if listens:
                signal.set_wakeup_fd(replaced)
            self._heard.clear()

    def stack(self) -> list[traceback.FrameSummary]:
        """The stack of the main thread, innermost call last; empty if it waits for other ranks, or is the caller."""
        if threading.current_thread() is self._main:
            return []
        frame: FrameType | None = sys._current_frames().get(self._main.ident or 0)
        frames = list(traceback.extract_stack(frame)) if frame else []
        own = [one for one in frames if one.filename != contextmanager.__code__.co_filename]
        return [] if own and Path(own[-1].filename).parent == _ROOM else frames[-INNERMOST:]

    def _watch(self) -> None:
        looked = time.monotonic()
        while True:
            readable, _, _ = select.select([self._listens], [], [], TICK)
            if readable:
                self._hear(os.read(self._listens, 1024))
            now = time.monotonic()
            self._silence += min(now - looked, LONGEST_TICK)
            looked = now
            if self.is_alone or self.exceeded or self._silence < self.limit:
                continue
            if self.in_run or not self.stack():
                self.expire()
                if not self._noticed.wait(REACTION):
                    self.at_silence()

    def _hear(self, numbers: bytes) -> None:
        now = time.monotonic()
        for number in numbers:
            if number in INSISTENT and now - self._heard.setdefault(number, now) > REPEATED:
                os._exit(128 + number)


def end_soon(seconds: float = ENDING) -> None:
    """End this process with exit status 1 in a few seconds, unless `do_not_end` is called.

    It is used before calls that may hang: MPI_Abort, MPI_Finalize, or a write to a launcher that does not read. A
        thread in C ends the process, because mpi4py holds Python's global lock in some calls, so that the guard
        cannot run.
    """
    global _nowhere
    _nowhere = open(os.devnull, "w")  # noqa: SIM115 (for a report that nobody wants; open until the end)
    faulthandler.dump_traceback_later(seconds, exit=True, file=_nowhere)


def do_not_end() -> None:
    """Cancel `end_soon`: the call has returned."""
    faulthandler.cancel_dump_traceback_later()
