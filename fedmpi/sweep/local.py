"""The runs of a sweep on this machine, so many at a time."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedmpi.errors import BadInput
from fedmpi.experiment.interruption import SIGNALS
from fedmpi.streams import say
from fedmpi.sweep.plan import Job
from fedmpi.sweep.report import last_value

#: Seconds from one look at the running jobs to the next.
INTERVAL = 0.1


def command(job: Job, ranks: int) -> list[str]:
    """The command that runs a job, on one rank without mpirun.

    Raises:
        BadInput: there is no mpirun.
    """
    program = [sys.executable, "-m", "fedmpi", *job.arguments]
    return [*_launcher(ranks), *program] if ranks > 1 else program


def _launcher(ranks: int) -> list[str]:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        raise BadInput(f"--ranks = {ranks}: needs mpirun, which was not found")
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    # Open MPI would refuse more ranks than cores, and the server needs no core.
    more = ["--oversubscribe"] if "Open MPI" in version or "OpenRTE" in version else []
    return [found, "-n", str(ranks), *more]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float


class Runs:
    """Runs jobs on this machine. What a job prints goes to a log file next to its results file.

    SIGINT, SIGTERM and SIGUSR1 are passed on to the running jobs: each ends its round and keeps a checkpoint. Then no
    further job is started. A second signal ends the jobs at once.

    Args:
        jobs: to run.
        at_once: the largest number of jobs at a time.
        ranks: of each job.
    """

    def __init__(self, jobs: Sequence[Job], at_once: int, ranks: int) -> None:
        self._count = len(jobs)
        self._waiting = deque(jobs)
        self._running: list[_Running] = []
        self._at_once = at_once
        self._ranks = ranks
        self._received: deque[int] = deque()  # signals that have not been passed on yet
        self._heard: signal.Signals | None = None
        self._ended = 0
        self._failed = False

    def complete(self) -> int:
        """Run the jobs to their ends.

        Returns:
            The exit status: 0; 1 if jobs have failed; after a signal 130 or 85, as for one run.
        """
        replaced = {
            number: signal.signal(number, lambda number, _: self._received.append(number)) for number in SIGNALS
        }
        try:
            while self._running or (self._waiting and not self._heard):
                while self._waiting and len(self._running) < self._at_once and not self._heard:
                    self._start(self._waiting.popleft())
                time.sleep(INTERVAL)
                while self._received:
                    self._pass_on(signal.Signals(self._received.popleft()))
                for one in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(one)
                    self._end(one)
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)
        return SIGNALS[self._heard] if self._heard else int(self._failed)

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                command(job, self._ranks),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # or Ctrl-C would reach the job twice: from the terminal and from `_pass_on`
            )
        self._running.append(_Running(job, process, time.monotonic()))

    def _end(self, one: _Running) -> None:
        """Say in one line how a job has ended."""
        self._ended += 1
        job, status, seconds = one.job, one.process.returncode, time.monotonic() - one.began
        found = None
        with suppress(BadInput):  # an unreadable file is not that of a finished run
            found = job.finished()
        if status == 0 and found:
            said = f"finished in {seconds:.1f} s, {last_value(found)}"
        elif self._heard:
            said = "interrupted"
        else:
            self._failed = True
            *_, last = [f"exit status {status}", *job.log.read_text(errors="replace").splitlines()]
            said = f"failed ({last if status == 2 else f'exit status {status}'}), see {job.log}"
        say(f"{self._ended}/{self._count}  {job.name}  {said}")

    def _pass_on(self, number: signal.Signals) -> None:
        for one in self._running:
            one.process.send_signal(number)
        how = "at once" if self._heard else "after their round; the same command continues"
        say(f"{number.name}: {len(self._running)} runs end {how}")
        self._heard = number
