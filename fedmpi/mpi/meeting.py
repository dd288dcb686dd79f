"""The ranks of a job: their nodes, barriers, and small messages.

Two rules hold for every collective here and above. First, a waiting rank sleeps. Ranks first meet in a barrier, in
which the last rank of a node wakes the others. Only then the transfer runs, at the full speed of MPI's blocking
calls. (MPI implementations spin inside blocking calls, and a spinning server would take a core away from the
clients.) Second, an error on any rank reaches rank 0 while it waits. If a rank does not answer within the deadline,
the job ends (`fedmpi.mpi.guard`), so no job hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike, NDArray

from fedmpi.errors import BadInput
from fedmpi.mpi.bell import Bell
from fedmpi.mpi.buffers import chunks, reshaped_like
from fedmpi.mpi.failures import Failures
from fedmpi.mpi.guard import Guard, do_not_end, end_soon
from fedmpi.mpi.segments import Segments, TooLittleMemory
from fedmpi.mpi.waiting import Waiting

# How long ranks may take to leave MPI together.
LEAVING_SECONDS = 15.0
# Number of words that the first rank of a node can pass on at a meeting.
WORDS = 3
# Number of checksums that ranks can compare at a time, and bits of each: together they are one word.
CLAIMS, CLAIM_BITS = 3, 21

T = TypeVar("T")


class RanksDiffer(Exception):
    """Ranks differ in something that should be equal; the message names it for the user."""


class Ranks:
    """The ranks of one job. Rank 0 is the server, and the others train. A single rank does both.

    Args:
        comm: the communicator of the job; default `MPI.COMM_WORLD`.
        ranks_a_node: for tests: pretend that this number of consecutive ranks share memory.
        guard: ends this process if it waits longer than the deadline; null: nothing does.

    Attributes:
        rank, size: this rank and their number.
        workers: the ranks that train clients, in order.
        comm: all ranks.
        node: the ranks that share this rank's memory.
        leaders: the ranks that communicate for their nodes; None: this rank is not one of them.
        nodes: number of nodes.
        node_of: the number of each rank's node, which is the place of the node's rank among the `leaders`.
        hosts: the name of each rank's node.
        leads: whether this rank communicates for its node.
        stands_in: whether it reports for its node if rank 0 does not answer.
        waiting: how this rank waits, and how long it has waited.
        failures: messages about failures.
        guard: see the argument.
        meetings: number of meetings (barriers) that this rank has reached.
        transferred: seconds that this rank has spent on transfers so far.
    """

    def __init__(
        self, comm: MPI.Intracomm | None = None, ranks_a_node: int | None = None, *, guard: Guard | None = None
    ) -> None:
        self.guard = guard or Guard()
        self.comm = comm if comm is not None else MPI.COMM_WORLD
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        self.guard.is_alone = self.size == 1
        self.workers = range(1, self.size) if self.size > 1 else range(1)
        self.transferred = 0.0
        if self.size == 1:  # a process may run many experiments, and MPI knows a limited number of communicators
            self.node = self.comm
        elif ranks_a_node is None:
            self.node = MPI.Intracomm(self.comm.Split_type(MPI.COMM_TYPE_SHARED))
        else:
            self.node = MPI.Intracomm(self.comm.Split(self.rank // ranks_a_node))
        self.hosts: list[str] = self.comm.allgather(self.host)
        self.failures = Failures(self.comm, self.hosts, self.guard)
        self.leads = self.node.Get_rank() == 0
        self.stands_in = self.node.Get_rank() == (1 if self.node.bcast(self.is_server) else 0)
        # One rank per node communicates for it; rank 0 is one of them.
        leaders = self.comm if self.size == 1 else self.comm.Split(0 if self.leads else MPI.UNDEFINED)
        self.leaders = type(self.comm)(leaders) if self.leads else None
        own = (self.leaders.Get_rank(), self.leaders.Get_size()) if self.leaders else (0, 0)
        number, self.nodes = self.node.bcast(own)
        self.node_of: list[int] = self.comm.allgather(number)
        self.meetings = 0
        self._looks = 0
        # For each rank: the last meeting that it reached. For the first rank: the last meeting that all nodes
        # reached, the bell, and its words for this meeting and the next (no rank is further ahead). For each rank:
        # its checksums for these two meetings.
        problem: BadInput | None = None
        try:
            self._arrivals = Segments(self.node, 3 + 2 * (WORDS + 1), np.int64)
        except TooLittleMemory as error:
            problem = error
        self._raise_agreed(problem)
        self._claims: Sequence[str] = ()
        self._word = 0
        bell = Bell(self._arrivals.arrays[0][2:].view(np.int32)[:1])
        self.waiting = Waiting(bell, self.failures, self.guard, crowd=max(self.node.Get_size() / _cores(), 1))
        self._scratch: list[list[NDArray[np.uint8]]] = [[], []]

    @property
    def is_server(self) -> bool:
        return self.rank == 0

    @property
    def is_worker(self) -> bool:
        return self.rank in self.workers

    @property
    def host(self) -> str:
        return MPI.Get_processor_name()

    # Meeting

    def meet(self, *words: int) -> tuple[int, ...]:
        """A barrier: sleep until every rank has arrived.

        What a rank wrote into shared memory before is then visible to the others.

        Returns: The (at most three) `words` of the first rank of this node. Their number must be the same on all
            ranks.
        """
        if self.size == 1:
            return words
        self.meetings += 1
        number, arrivals = self.meetings, self._arrivals
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
            if self.leaders:
                smallest = np.array([self._word, ~self._word])
                self.waiting.poll(self.leaders.Iallreduce(MPI.IN_PLACE, smallest, op=MPI.MIN).Test)
                self._compare([smallest[0], ~smallest[1]])
                mine[1] = number
            self._await_node(lambda: bool(arrivals.arrays[0][1] >= number))
        self._claims, self._word = (), 0
        arrivals.publish()
        return tuple(arrivals.arrays[0][said].tolist())

    def vouch(self, claims: Mapping[str, int]) -> None:
        """Check that all ranks hold the same; must be called on all of them. It costs no additional message.

        The checksums are compared at the next meeting. Calls whose memory or partners depend on them meet first.

        Args:
            claims: description of the problem -> checksum, in the same order on every rank; at most three.

        Raises:
            RanksDiffer: a checksum differs between ranks. It is raised at the next meeting, on at least one rank; the
                others wait, and learn of its failure.
        """
        assert len(claims) <= CLAIMS
        if self.size == 1:
            return
        self.settle()
        self._claims = list(claims)
        self._word = sum(
            (number & ((1 << CLAIM_BITS) - 1)) << (CLAIM_BITS * place) for place, number in enumerate(claims.values())
        )

    def settle(self) -> None:
        """Meet, if there are claims that have not been compared yet."""
        if self._claims:
            self.meet()

    def _compare(self, words: Iterable[int]) -> None:
        """Raise RanksDiffer for the first claim whose checksum differs from another rank's."""
        for word in words:
            for place, claim in enumerate(self._claims):
                if (int(word) ^ self._word) >> (CLAIM_BITS * place) & ((1 << CLAIM_BITS) - 1):
                    raise RanksDiffer(claim)

    def _await_node(self, is_over: Callable[[], bool]) -> None:
        """Sleep until ranks of this node have made a condition true; the rank that does so wakes the others."""
        self._arrivals.publish()  # otherwise two ranks that arrive at once may miss each other
        self._looks += 1
        self.waiting.meet(is_over, ring=self._looks * self.size + self.rank)

    # Agreement

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run a block that may raise bad input on some ranks only.

        Afterwards either every rank raises it, or none.
        """
        problem: BadInput | None = None
        try:
            yield
        except BadInput as error:
            problem = error
        self.meet()
        self._raise_agreed(problem)

    def _raise_agreed(self, problem: BadInput | None) -> None:
        """Raise the first rank's problem on all ranks.

        If not all ranks have a problem, and there are several nodes, the message names the node.
        """
        first = self.comm.allreduce(self.size if problem is None else self.rank, op=MPI.MIN)
        if first == self.size:
            return
        having = self.comm.allreduce(int(problem is not None))
        agreed: BadInput = self.comm.bcast(problem, root=first)
        host = self.hosts[first]
        if having < self.size and len({*self.hosts}) > 1 and host not in agreed.message.split():
            agreed = BadInput(f"{agreed.message} (on {host})", agreed.option)
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

    # Memory, and small vectors

    def allocate(self, count: int, dtype: DTypeLike, number: int | None = None) -> list[NDArray]:
        """Arrays [count] on each node, made by `Segments`; a collective.

        Raises:
            BadInput: a node has too little shared memory; on every rank alike.
        """
        self.meet()
        with self.agreed():
            return Segments(self.node, count, dtype, number).arrays

    def sum(self, buffer: NDArray) -> None:
        """Replace the contiguous `buffer` of every rank by the sum over the ranks; for small buffers."""
        if self.size == 1:
            return
        self.settle()
        with self.transferring():
            arrays = [reshaped_like(array, buffer) for array in self._next_scratch(buffer.nbytes)]
            arrays[self.node.Get_rank()][...] = buffer
            self.meet()
            if self.nodes == 1:
                np.sum(arrays, axis=0, out=buffer)
                return
            if self.leaders:
                np.sum(arrays, axis=0, out=buffer)
                self.sum_over_nodes(buffer)
                arrays[0][...] = buffer
            self.meet()
            buffer[...] = arrays[0]

    def tell(self, vector: NDArray) -> NDArray:
        """Rank 0's contiguous `vector` on every rank; the others pass one of the same shape and type.

        For small vectors.

        Returns: The vector, in memory that is soon reused by later calls of this or of `sum`: copy it at once.
        """
        if self.size == 1:
            return vector
        self.settle()
        with self.transferring():
            memory = reshaped_like(self._next_scratch(vector.nbytes)[0], vector)
            if self.is_server:
                memory[...] = vector
            if self.leaders and self.nodes > 1:
                self.waiting.poll(self.leaders.Ibarrier().Test)
                for part in chunks(memory):
                    self.leaders.Bcast(part, root=0)
            self.meet()
            return memory

    def sum_over_nodes(self, buffer: NDArray) -> None:
        """Replace the leaders' `buffer` by the sum over the nodes; other ranks do nothing.

        It is an Allreduce, although not all ranks need the result, because in MPICH it is 1.6 to 3.8 times as fast as
        Reduce.
        """
        if self.leaders:
            for part in chunks(buffer):
                self.leaders.Allreduce(MPI.IN_PLACE, part, op=MPI.SUM)

    @contextmanager
    def transferring(self) -> Iterator[None]:
        """Count the time of a transfer, without waiting."""
        started, waited = time.perf_counter(), self.waiting.seconds
        yield
        self.transferred += time.perf_counter() - started - (self.waiting.seconds - waited)

    def _next_scratch(self, size: int) -> list[NDArray[np.uint8]]:
        # Two alternating buffers: a rank may fill one for the next sum while another rank still reads the last.
        self._scratch.reverse()
        if not self._scratch[0] or len(self._scratch[0][0]) < size:
            self._scratch[0] = self.allocate(size, np.uint8)
        return self._scratch[0]

    def end(self, status: int) -> None:
        """Finalize MPI before all ranks exit with this status; at interpreter exit, nothing would watch over it.

        If that hangs, because a node or the launcher no longer exists, the process ends with status 1.
        """
        if self.size > 1:
            self.guard.at_silence = lambda: os._exit(status)
            self.guard.limit = min(self.guard.limit, LEAVING_SECONDS)
            self.meet()
            end_soon(LEAVING_SECONDS)
            MPI.Finalize()
            do_not_end()
            self.guard.is_alone = True


def _cores() -> int:
    """Cores that this rank may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
