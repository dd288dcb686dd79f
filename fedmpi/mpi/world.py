"""The ranks of a job: who serves and who trains, how they exchange flat buffers, wait, agree and fail.

Two rules hold for every collective here. A rank that waits sleeps: ranks first meet in a barrier that is polled
with short sleeps, and only when all have arrived does the transfer itself run, at the full speed of MPI's blocking
calls. (MPI implementations spin inside blocking calls; a server that spins takes a core away from the clients.)
And an error on any rank reaches rank 0 while it waits, so that no job hangs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.errors import BadInput

SPIN_SECONDS = 50e-6
LONGEST_SLEEP = 5e-3
# How long a rank that failed waits for rank 0 to answer, and then for it to end the job.
PATIENCE_SECONDS = 3.0
ENDING_SECONDS = 600.0
# Well below 2^31, the largest count that an MPI-3 library takes.
CHUNK_ELEMENTS = 1 << 28

T = TypeVar("T")


class RemoteFailure(Exception):
    """Another rank failed; the message is its report, which rank 0 prints on its behalf."""


class World:
    """The ranks of one job. Rank 0 is the server; the others train, and so does rank 0 when it is alone.

    Args:
        comm: the communicator of the job; default `MPI.COMM_WORLD`.

    Attributes:
        rank, size: this rank and their number.
        workers: the ranks that host clients, in order.
        waited: seconds this rank has slept for others so far.
        transferred: seconds this rank has spent moving data so far.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        self.comm = comm if comm is not None else MPI.COMM_WORLD
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        self.workers = range(1, self.size) if self.size > 1 else range(1)
        self.waited = 0.0
        self.transferred = 0.0
        self._failures = self.comm.Dup()
        self._node = MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED))

    @property
    def is_server(self) -> bool:
        return self.rank == 0

    @property
    def is_worker(self) -> bool:
        return self.rank in self.workers

    @property
    def host(self) -> str:
        return MPI.Get_processor_name()

    @property
    def node(self) -> MPI.Intracomm:
        """The ranks that share this rank's memory."""
        return self._node

    # Waiting

    def wait(self, request: MPI.Request) -> None:
        """Poll until the request is complete: spin for microseconds, then sleep, ever longer up to 5 ms."""
        started = time.perf_counter()
        while not request.Test():
            elapsed = time.perf_counter() - started
            if elapsed > SPIN_SECONDS:
                self._raise_remote_failure()
                time.sleep(min(elapsed / 20, LONGEST_SLEEP))
        self.waited += time.perf_counter() - started

    def meet(self, comm: MPI.Intracomm | None = None) -> None:
        """Sleep until every rank (of `comm`) is here."""
        self.wait((comm or self.comm).Ibarrier())

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        self.meet()
        started = time.perf_counter()
        yield
        self.transferred += time.perf_counter() - started

    # Flat buffers

    def broadcast(self, buffer: NDArray) -> None:
        """Fill the contiguous `buffer` of every rank with that of rank 0."""
        if self.size > 1:
            with self._transfer():
                for part in _chunks(buffer):
                    self.comm.Bcast(part, root=0)

    def sum(self, buffer: NDArray) -> None:
        """Replace the contiguous `buffer` of every rank by the sum over the ranks.

        An Allreduce, although only the server needs the result: in MPICH it is 1.6 to 3.8 times as fast as Reduce.
        """
        if self.size > 1:
            with self._transfer():
                for part in _chunks(buffer):
                    self.comm.Allreduce(MPI.IN_PLACE, part, op=MPI.SUM)

    def exchange(self, outgoing: Sequence[tuple[int, NDArray]], incoming: Sequence[tuple[int, NDArray]]) -> None:
        """Send each (rank, contiguous array) and fill each (rank, contiguous array); order matters per pair."""
        requests = [self.comm.Irecv(part, source) for source, array in incoming for part in _chunks(array)]
        requests += [self.comm.Isend(part, target) for target, array in outgoing for part in _chunks(array)]
        for request in requests:
            self.wait(request)

    # Agreement

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run a block that may find bad input on some ranks only: either no rank raises it, or every rank does."""
        problem: BadInput | None = None
        try:
            yield
        except BadInput as error:
            problem = error
        self.meet()
        first = self.comm.allreduce(self.size if problem is None else self.rank, op=MPI.MIN)
        if first < self.size:
            agreed: BadInput = self.comm.bcast(problem, root=first)
            agreed.agreed = True
            raise agreed

    # For the set-up of a job, not for its rounds: these send pickles.

    def gather_text(self, text: str) -> list[str]:
        """Every rank's text, in rank order, on every rank."""
        self.meet()
        return self.comm.allgather(text)

    def from_server(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        self.meet()
        return self.comm.bcast(value, root=0)

    # Failure

    def _raise_remote_failure(self) -> None:
        if self.is_server and self._failures.Iprobe():
            status = MPI.Status()
            self._failures.Probe(status=status)
            text = bytearray(status.Get_count(MPI.BYTE))
            self._failures.Recv(text, source=status.Get_source())
            raise RemoteFailure(text.decode(errors="replace"))

    def announce_end(self) -> None:
        """Rank 0 tells all others that it is ending the job, and may have to write a large file first."""
        for rank in range(1, self.size):
            self._failures.Isend(b"", dest=rank)

    def report_failure(self, report: str) -> NoReturn:
        """Hand a worker's report to rank 0, which prints it and ends the job; if it does not, do so here."""
        request = self._failures.Isend(report.encode(), dest=0)
        deadline, answered = time.monotonic() + PATIENCE_SECONDS, False
        while time.monotonic() < deadline:
            request.Test()
            if not answered and self._failures.Iprobe(source=0):
                deadline, answered = deadline + ENDING_SECONDS, True
            time.sleep(LONGEST_SLEEP)
        print(report, file=sys.stderr, flush=True)
        self.abort()

    def abort(self) -> NoReturn:
        """End all ranks at once with exit status 1."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.comm.Abort(1)
        raise SystemExit(1)


def _chunks(array: NDArray) -> Iterator[NDArray]:
    flat = array.reshape(-1)
    assert np.shares_memory(flat, array) or not array.size, "MPI needs a contiguous buffer"
    for start in range(0, len(flat), CHUNK_ELEMENTS):
        yield flat[start : start + CHUNK_ELEMENTS]


def mpi_version() -> str:
    """The MPI library's name and version, on one line."""
    return MPI.Get_library_version().splitlines()[0].strip("\0 \t").replace("\t", " ")
