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
from fedmpi.experiment.ownership import IN_USE
from fedmpi.streams import say
from fedmpi.sweep.plan import Job
from fedmpi.sweep.report import last_value

#: Seconds from one look at the running jobs to the next.
INTERVAL = 0.1
#: What is said of a job that another program runs.
RUNNING = "running elsewhere"


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
    logged: int  # bytes that the log had before


class Runs:
    """Runs jobs on this machine. What a job prints goes to a log file next to its results file.

    SIGINT, SIGTERM and SIGUSR1 are passed on to the running jobs: each ends its round and keeps a checkpoint. Then no
    further job is started. The same holds when a job ends because the allocation does. A second signal ends the jobs
    at once.

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
        self._interrupted = 0  # the exit status of a job that was interrupted
        self._ended = 0
        self._failed = False

    def complete(self) -> int:
        """Run the jobs to their ends.

        Returns:
            The exit status: 0; 1 if jobs have failed; 130 or 85 if jobs were interrupted, as for one run.
        """
        replaced = {
            number: signal.signal(number, lambda number, _: self._received.append(number)) for number in SIGNALS
        }
        try:
            while self._running or (self._waiting and not self._interrupted):
                while self._waiting and len(self._running) < self._at_once and not self._interrupted:
                    job = self._waiting.popleft()
                    if where := _elsewhere(job):
                        self._say(job, where)
                    else:
                        self._start(job)
                time.sleep(INTERVAL)
                while self._received:
                    self._pass_on(signal.Signals(self._received.popleft()))
                for one in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(one)
                    self._end(one)
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)
        return self._interrupted or int(self._failed)

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            logged = log.tell()
            process = subprocess.Popen(
                command(job, self._ranks),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # or Ctrl-C would reach the job twice: from the terminal and from `_pass_on`
            )
            self._running.append(_Running(job, process, time.monotonic(), logged))

    def _end(self, one: _Running) -> None:
        """Say in one line how a job has ended."""
        job, status, seconds = one.job, one.process.returncode, time.monotonic() - one.began
        found = None
        with suppress(BadInput):  # an unreadable file is not that of a finished run
            found = job.finished()
        if status == 0 and found:
            self._say(job, f"finished in {seconds:.1f} s, {last_value(found)}")
        elif self._heard or status in SIGNALS.values():
            self._interrupted = self._interrupted or status
            self._say(job, "interrupted; the same command continues")
        else:
            reason = _error(job.log.read_bytes()[one.logged :].decode(errors="replace")) if status == 2 else None
            where = _elsewhere(job) or (RUNNING if reason and IN_USE in reason else "")
            self._failed = self._failed or not where
            self._say(job, where or f"failed ({reason or f'exit status {status}'}), see {job.log}")

    def _say(self, job: Job, what: str) -> None:
        self._ended += 1
        say(f"{self._ended}/{self._count}  {job.name}  {what}")

    def _pass_on(self, number: signal.Signals) -> None:
        for one in self._running:
            one.process.send_signal(number)
        how = "at once" if self._heard else "after their round; the same command continues"
        say(f"{number.name}: {len(self._running)} runs end {how}")
        self._heard = number
        self._interrupted = SIGNALS[number]


def _elsewhere(job: Job) -> str:
    """What another program does with a job, or has done; nothing if it has left it alone."""
    try:
        return RUNNING if job.is_running() else "finished elsewhere" if job.finished() else ""
    except BadInput:  # the file is damaged, or of another setting, which the run itself says
        return ""


def _error(printed: str) -> str | None:
    """The last error of a run in what it has printed. Another program may have printed into the same log."""
    return next((line for line in reversed(printed.splitlines()) if line.startswith("fedmpi: error")), None)
