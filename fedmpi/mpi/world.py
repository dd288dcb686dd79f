"""The ranks of a job: who serves and who trains, how they exchange flat buffers, wait, agree and fail.

Two rules hold for every collective here. A rank that waits sleeps: ranks first meet, those of a node where the last
to come wakes the others, and only when all have arrived does the transfer itself run, at the full speed of MPI's
blocking calls. (MPI implementations spin inside blocking calls; a server that spins takes a core away from the
clients.) And an error on any rank reaches rank 0 while it waits, so that no job hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi import streams
from fedmpi.errors import BadInput
from fedmpi.mpi.bell import Bell
from fedmpi.mpi.node import FixedPoint, Segments, SharedMean

SPIN_SECONDS = 50e-6
SHORTEST_SLEEP = 20e-6
LONGEST_SLEEP = 5e-3
# A rank that is woken tends to be put on the core of the one that wakes it, which then does nothing else for a while:
# for short waits naps are better.
NAPS_SECONDS = 20e-3
# How much of the time that ranks are expected to be busy they will be for certain.
CERTAIN = 0.9
# How soon a rank that waits for others of its node hears of a failure.
LONGEST_DEAFNESS = 50e-3
# How long a rank that failed waits for rank 0 to answer, and then for it to end the job.
PATIENCE_SECONDS = 3.0
ENDING_SECONDS = 600.0
# How long the launcher has to pass on what was printed, before the end of the job closes its pipes.
FORWARDING_SECONDS = 0.5
# Well below 2^31, the largest count that an MPI-3 library takes.
CHUNK_ELEMENTS = 1 << 28
# How much the first rank of a node can say at a meeting.
WORDS = 3
# How many claims ranks can vouch for at a time, and with how many bits each: together they are one word.
CLAIMS, CLAIM_BITS = 3, 21
NOWHERE = -1

T = TypeVar("T")


class RemoteFailure(Exception):
    """Another rank failed; the message is its report, which rank 0 prints on its behalf."""


class RanksDiffer(Exception):
    """Ranks have made different things of what should have been the same; the message says which, for the user."""


class World:
    """The ranks of one job. Rank 0 is the server; the others train, and so does rank 0 when it is alone.

    Args:
        comm: the communicator of the job; default `MPI.COMM_WORLD`.
        ranks_a_node: pretend that so many consecutive ranks share memory, whatever is the case.

    Attributes:
        rank, size: this rank and their number.
        workers: the ranks that host clients, in order.
        node: the ranks that share this rank's memory.
        nodes: how many nodes there are.
        leads: whether this rank speaks for its node.
        waited: seconds this rank has slept for others so far.
        transferred: seconds this rank has spent moving data so far.
    """

    def __init__(self, comm: MPI.Intracomm | None = None, ranks_a_node: int | None = None) -> None:
        self.comm = comm if comm is not None else MPI.COMM_WORLD
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        self.workers = range(1, self.size) if self.size > 1 else range(1)
        self.waited = 0.0
        self.transferred = 0.0
        if self.size == 1:  # a process may run many experiments, and MPI knows a limited number of communicators
            self._failures = self.node = self.comm
        elif ranks_a_node is None:
            self._failures = self.comm.Dup()
            self.node = MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED))
        else:
            self._failures = self.comm.Dup()
            self.node = MPI.Intracomm(self.comm.Split(self.rank // ranks_a_node))
        self.leads = self.node.Get_rank() == 0
        # One rank a node speaks for it; rank 0 is among them.
        leaders = self.comm if self.size == 1 else self.comm.Split(0 if self.leads else MPI.UNDEFINED)
        self._leaders = type(self.comm)(leaders) if self.leads else None
        self.nodes: int = self.node.bcast(self._leaders.Get_size() if self._leaders else 0)
        # Ranks that share cores must not keep them from those they wait for by looking too often.
        crowd = max(self.node.Get_size() / _cores(), 1)
        self._shortest_sleep = SHORTEST_SLEEP * (crowd * crowd - 1)
        self._busy_until = 0.0
        self._meetings = 0
        self._rings = 0
        # Of each rank: the last meeting it came to. The first rank's: the last that all nodes came to, the bell, and
        # what it says at this meeting and at the next (nobody is further ahead). Each rank's: what it vouches for at
        # either of these.
        self._arrivals = Segments(self.node, 3 + 2 * (WORDS + 1), np.int64)
        self._claims: Sequence[str] = ()
        self._word = 0
        self._bell = Bell(self._arrivals.arrays[0][2:].view(np.int32)[:1])
        self._broadcasts: list[NDArray[np.uint8]] = []
        self._means: list[SharedMean] = []
        self._scratch: list[list[NDArray[np.uint8]]] = [[], []]
        self.begin_round()

    @property
    def is_server(self) -> bool:
        return self.rank == 0

    @property
    def is_worker(self) -> bool:
        return self.rank in self.workers

    @property
    def host(self) -> str:
        return MPI.Get_processor_name()

    # Waiting

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Poll: spin for microseconds, then sleep, ever longer up to 5 ms. For what MPI alone can tell."""
        with self._waiting() as elapsed:
            while not is_over():
                if elapsed() > SPIN_SECONDS:
                    self._raise_remote_failure()
                    self._nap(elapsed())

    def expect(self, seconds: float) -> None:
        """Other ranks are busy for about so long: until then, one that waits for them need not look often."""
        self._busy_until = time.perf_counter() + CERTAIN * seconds

    def meet(self, *words: int) -> tuple[int, ...]:
        """Sleep until every rank is here; what each wrote into shared memory before, the others then see.

        Returns:
            The up to three `words` that the first rank of this node brought along; how many, all agree on.
        """
        if self.size == 1:
            return words
        self._meetings += 1
        number, arrivals = self._meetings, self._arrivals
        arrivals.publish()
        mine = arrivals.arrays[self.node.Get_rank()]
        first_word = 3 + (WORDS + 1) * (number % 2)
        said, vouched = slice(first_word, first_word + len(words)), first_word + WORDS
        mine[said] = words
        mine[vouched] = self._word
        mine[0] = number
        self._await_node(lambda: all(array[0] >= number for array in arrivals.arrays))
        if self._claims:
            arrivals.publish()
            self._compare(array[vouched] for array in arrivals.arrays)
        if self.nodes > 1:
            if self._leaders:
                smallest = np.array([self._word, ~self._word])
                self.wait(self._leaders.Iallreduce(MPI.IN_PLACE, smallest, op=MPI.MIN).Test)
                self._compare([smallest[0], ~smallest[1]])
                mine[1] = number
            self._await_node(lambda: bool(arrivals.arrays[0][1] >= number))
        self._claims, self._word = (), 0
        arrivals.publish()
        return tuple(arrivals.arrays[0][said].tolist())

    def vouch(self, claims: Mapping[str, int]) -> None:
        """Claim that all ranks hold the same; to be called on all of them. It costs no message of its own.

        The words travel with the next meeting. What needs memory or partners that depend on it meets before.

        Args:
            claims: what would be wrong -> a checksum, in the same order on every rank; three at the most.

        Raises:
            RanksDiffer: by the next meeting: a checksum is not the same on all ranks. On one rank at least: the
                others wait, and hear of its failure.
        """
        assert len(claims) <= CLAIMS
        if self.size == 1:
            return
        self._settle()
        self._claims = list(claims)
        self._word = sum(
            (number & ((1 << CLAIM_BITS) - 1)) << (CLAIM_BITS * place) for place, number in enumerate(claims.values())
        )

    def _compare(self, words: Iterable[int]) -> None:
        """Raise RanksDiffer, for the first claim that is not true, unless others' words are this rank's."""
        for word in words:
            for place, claim in enumerate(self._claims):
                if (int(word) ^ self._word) >> (CLAIM_BITS * place) & ((1 << CLAIM_BITS) - 1):
                    raise RanksDiffer(claim)

    def _settle(self) -> None:
        """Meet if that is needed to know whether claims are true."""
        if self._claims:
            self.meet()

    def _await_node(self, is_over: Callable[[], bool]) -> None:
        """Sleep until ranks of this node have made something true; whoever has, wakes the others."""
        self._arrivals.publish()  # else two ranks that come at once may each miss the other
        if is_over():
            self._rings += 1
            self._bell.ring(self._rings * self.size + self.rank)
            return
        with self._waiting() as elapsed:
            while True:
                last = self._bell.last
                if is_over():
                    return
                if elapsed() > SPIN_SECONDS:
                    self._raise_remote_failure()
                    if elapsed() < NAPS_SECONDS:
                        self._nap(elapsed())
                    else:
                        self._bell.sleep(last, LONGEST_DEAFNESS)

    def _nap(self, elapsed: float) -> None:
        """The longer it has been, the longer; but no look is worthwhile while others are busy for certain."""
        over = time.perf_counter() - self._busy_until
        nap = -over if over < 0 else max(min(elapsed, over) / 20, self._shortest_sleep)
        time.sleep(min(nap, LONGEST_SLEEP))

    @contextmanager
    def _waiting(self) -> Iterator[Callable[[], float]]:
        """Count the time as waiting; gives what tells the seconds since."""
        started = time.perf_counter()
        yield lambda: time.perf_counter() - started
        self.waited += time.perf_counter() - started

    # Vectors

    def begin_round(self) -> None:
        """Let the memory of the last round's broadcasts and means be used again."""
        self._broadcasts_used = 0
        self._means_used = 0

    def broadcast(self, vector: NDArray) -> NDArray:
        """Rank 0's contiguous `vector` on every rank; the others give one of the same shape and type.

        Returns:
            It, in memory that the node's ranks share: to be read only, and only until the end of the round.
        """
        if self.size == 1:
            return vector
        with self._transfer():
            region = _as(self._next_region(vector.nbytes), vector)
            # A mean that was formed in the node's memory is read where it lies.
            where = self._place_of(vector) if self.is_server else None
            if self.is_server and where is None:
                region[...] = vector
            if self._leaders and self.nodes > 1:
                source = vector if where else region
                self.wait(self._leaders.Ibarrier().Test)
                for part in _chunks(source):
                    self._leaders.Bcast(part, root=0)
            mean, formed, offset = self.meet(*(where or (NOWHERE, 0, 0)))
            if where is not None:
                return vector  # which keeps that memory from being used again
            if mean == NOWHERE:
                return region
            memory = self._means[mean].formed[formed].reshape(-1).view(np.uint8)
            return _as(memory[offset:], vector)

    def lent(self, array: NDArray) -> bool:
        """Whether `array` lies in memory that `broadcast` gave, which the next round uses again."""
        memories: list[NDArray] = list(self._broadcasts)
        if not self.is_server:
            memories += [formed for mean in self._means for formed in mean.formed]
        return any(_offset(array, memory) is not None for memory in memories)

    def _place_of(self, vector: NDArray) -> tuple[int, int, int] | None:
        """The number of the mean, and of its memory, where `vector` lies, and how many bytes behind its begin."""
        for i, mean in enumerate(self._means):
            for j, formed in enumerate(mean.formed):
                if (offset := _offset(vector, formed)) is not None:
                    return i, j, offset
        return None

    def shared_mean(self, rows: int, columns: int, kinds: Sequence[tuple[int, FixedPoint]]) -> SharedMean:
        """An empty sum for means of this shape; to be used in this round."""
        while True:
            if self._means_used == len(self._means):
                self._settle()
                self._means.append(SharedMean(self, rows, columns, kinds))
            mean = self._means[self._means_used]
            self._means_used += 1
            if mean.suits(rows, columns, kinds):
                mean.clear()
                return mean

    def sum(self, buffer: NDArray) -> None:
        """Replace the contiguous `buffer` of every rank by the sum over the ranks; for small ones."""
        if self.size == 1:
            return
        self._settle()
        with self._transfer():
            arrays = [_as(array, buffer) for array in self._next_scratch(buffer.nbytes)]
            arrays[self.node.Get_rank()][...] = buffer
            self.meet()
            if self.nodes == 1:
                np.sum(arrays, axis=0, out=buffer)
                return
            if self._leaders:
                np.sum(arrays, axis=0, out=buffer)
                self.sum_over_nodes(buffer)
                arrays[0][...] = buffer
            self.meet()
            buffer[...] = arrays[0]

    def tell(self, vector: NDArray) -> NDArray:
        """Rank 0's contiguous `vector` on every rank; the others give one of the same shape and type. For small ones.

        Returns:
            It, in memory that is used again by the next call but one of this or of `sum`: to be copied at once.
        """
        if self.size == 1:
            return vector
        self._settle()
        with self._transfer():
            memory = _as(self._next_scratch(vector.nbytes)[0], vector)
            if self.is_server:
                memory[...] = vector
            if self._leaders and self.nodes > 1:
                self.wait(self._leaders.Ibarrier().Test)
                for part in _chunks(memory):
                    self._leaders.Bcast(part, root=0)
            self.meet()
            return memory

    def sum_over_nodes(self, buffer: NDArray) -> None:
        """Replace the leaders' `buffer` by the sum over the nodes; nothing on the other ranks.

        An Allreduce, although not all need the result: in MPICH it is 1.6 to 3.8 times as fast as Reduce.
        """
        if self._leaders:
            for part in _chunks(buffer):
                self._leaders.Allreduce(MPI.IN_PLACE, part, op=MPI.SUM)

    def exchange(self, outgoing: Sequence[tuple[int, NDArray]], incoming: Sequence[tuple[int, NDArray]]) -> None:
        """Send each (rank, contiguous array) and fill each (rank, contiguous array); order matters per pair."""
        self._settle()
        with self._transfer():
            requests = [self.comm.Irecv(part, source) for source, array in incoming for part in _chunks(array)]
            requests += [self.comm.Isend(part, target) for target, array in outgoing for part in _chunks(array)]
            for request in requests:
                self.wait(request.Test)

    @contextmanager
    def _transfer(self) -> Iterator[None]:
        """Count the time of a transfer, but for what it waits."""
        started, waited = time.perf_counter(), self.waited
        yield
        self.transferred += time.perf_counter() - started - (self.waited - waited)

    def _next_region(self, size: int) -> NDArray[np.uint8]:
        number = self._broadcasts_used
        self._broadcasts_used += 1
        if number == len(self._broadcasts) or len(self._broadcasts[number]) < size:
            self._settle()
            self._broadcasts[number : number + 1] = Segments(self.node, size, np.uint8, number=1).arrays
        return self._broadcasts[number]

    def _next_scratch(self, size: int) -> list[NDArray[np.uint8]]:
        # Two in turn: a rank may fill one for the next sum while another still reads the last.
        self._scratch.reverse()
        if not self._scratch[0] or len(self._scratch[0][0]) < size:
            self._scratch[0] = Segments(self.node, size, np.uint8).arrays
        return self._scratch[0]

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
        # Asked on every rank: it also lets MPI get on with what other ranks want of this one.
        if self._failures.Iprobe() and self.is_server:
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
        streams.put(report, "stderr")
        self.abort()

    def abort(self, status: int = 1) -> NoReturn:
        """End all ranks at once with this exit status."""
        streams.flush()
        time.sleep(FORWARDING_SECONDS)
        self.comm.Abort(status)
        raise SystemExit(status)


def _cores() -> int:
    """Cores that this rank may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _offset(array: NDArray, memory: NDArray) -> int | None:
    """How many bytes behind the begin of `memory` an array begins; None: it does not lie there."""
    offset: int = array.ctypes.data - memory.ctypes.data
    return offset if 0 <= offset < memory.nbytes else None


def _as(memory: NDArray[np.uint8], like: NDArray) -> NDArray:
    """The beginning of `memory` as an array of the same shape and type."""
    return memory[: like.nbytes].view(like.dtype).reshape(like.shape)


def _chunks(array: NDArray) -> Iterator[NDArray]:
    flat = array.reshape(-1)
    assert np.shares_memory(flat, array) or not array.size, "MPI needs a contiguous buffer"
    for start in range(0, len(flat), CHUNK_ELEMENTS):
        yield flat[start : start + CHUNK_ELEMENTS]


def mpi_version() -> str:
    """The MPI library's name and version, on one line."""
    return MPI.Get_library_version().splitlines()[0].strip("\0 \t").replace("\t", " ")
