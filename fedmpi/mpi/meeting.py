"""The ranks of a job: who they are, how they wait for each other, and the little that they tell each other.

Two rules hold for every collective here and above. A rank that waits sleeps: ranks first meet, those of a node where
the last to come wakes the others, and only when all have arrived does the transfer itself run, at the full speed of
MPI's blocking calls. (MPI implementations spin inside blocking calls; a server that spins takes a core away from the
clients.) And an error on any rank reaches rank 0 while it waits. A rank that nobody hears of for longer than the
deadline ends the job (`fedmpi.mpi.guard`), so that no job hangs.
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
# How much the first rank of a node can say at a meeting.
WORDS = 3
# How many claims ranks can vouch for at a time, and with how many bits each: together they are one word.
CLAIMS, CLAIM_BITS = 3, 21

T = TypeVar("T")


class RanksDiffer(Exception):
    """Ranks have made different things of what should have been the same; the message says which, for the user."""


class Ranks:
    """The ranks of one job. Rank 0 is the server; the others train, and so does rank 0 when it is alone.

    Args:
        comm: the communicator of the job; default `MPI.COMM_WORLD`.
        ranks_a_node: pretend that so many consecutive ranks share memory, whatever is the case.
        guard: ends this process when it waits for others for longer than the deadline; null: nothing does.

    Attributes:
        rank, size: this rank and their number.
        workers: the ranks that host clients, in order.
        comm: all ranks.
        node: the ranks that share this rank's memory.
        leaders: those that speak for a node each; None: this rank does not.
        nodes: how many nodes there are.
        hosts: the name of each rank's node.
        leads: whether this rank speaks for its node.
        stands_in: whether it speaks for its node where rank 0 does not answer.
        waiting: how this rank waits, and for how long it has.
        failures: what ranks tell each other about them.
        guard: the same.
        meetings: how many this rank has come to.
        transferred: seconds this rank has spent moving data so far.
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
        # One rank a node speaks for it; rank 0 is among them.
        leaders = self.comm if self.size == 1 else self.comm.Split(0 if self.leads else MPI.UNDEFINED)
        self.leaders = type(self.comm)(leaders) if self.leads else None
        self.nodes: int = self.node.bcast(self.leaders.Get_size() if self.leaders else 0)
        self.meetings = 0
        self._looks = 0
        # Of each rank: the last meeting it came to. The first rank's: the last that all nodes came to, the bell, and
        # what it says at this meeting and at the next (nobody is further ahead). Each rank's: what it vouches for at
        # either of these.
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
        """Sleep until every rank is here; what each wrote into shared memory before, the others then see.

        Returns:
            The up to three `words` that the first rank of this node brought along; how many, all agree on.
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
        self.settle()
        self._claims = list(claims)
        self._word = sum(
            (number & ((1 << CLAIM_BITS) - 1)) << (CLAIM_BITS * place) for place, number in enumerate(claims.values())
        )

    def settle(self) -> None:
        """Meet if that is needed to know whether claims are true."""
        if self._claims:
            self.meet()

    def _compare(self, words: Iterable[int]) -> None:
        """Raise RanksDiffer, for the first claim that is not true, unless others' words are this rank's."""
        for word in words:
            for place, claim in enumerate(self._claims):
                if (int(word) ^ self._word) >> (CLAIM_BITS * place) & ((1 << CLAIM_BITS) - 1):
                    raise RanksDiffer(claim)

    def _await_node(self, is_over: Callable[[], bool]) -> None:
        """Sleep until ranks of this node have made something true; whoever has, wakes the others."""
        self._arrivals.publish()  # else two ranks that come at once may each miss the other
        self._looks += 1
        self.waiting.meet(is_over, ring=self._looks * self.size + self.rank)

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
        self._raise_agreed(problem)

    def _raise_agreed(self, problem: BadInput | None) -> None:
        """Raise the problem of the first rank that has one, on all ranks.

        If not all ranks have one, and ranks are on several nodes, the message names that one, which lacks something.
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
        """Arrays [count] of each node, as `Segments` makes them; a collective.

        Raises:
            BadInput: the shared memory of some node is too small; on every rank alike.
        """
        self.meet()
        with self.agreed():
            return Segments(self.node, count, dtype, number).arrays

    def sum(self, buffer: NDArray) -> None:
        """Replace the contiguous `buffer` of every rank by the sum over the ranks; for small ones."""
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
        """Rank 0's contiguous `vector` on every rank; the others give one of the same shape and type. For small ones.

        Returns:
            It, in memory that is used again by the next call but one of this or of `sum`: to be copied at once.
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
        """Replace the leaders' `buffer` by the sum over the nodes; nothing on the other ranks.

        An Allreduce, although not all need the result: in MPICH it is 1.6 to 3.8 times as fast as Reduce.
        """
        if self.leaders:
            for part in chunks(buffer):
                self.leaders.Allreduce(MPI.IN_PLACE, part, op=MPI.SUM)

    @contextmanager
    def transferring(self) -> Iterator[None]:
        """Count the time of a transfer, but for what it waits."""
        started, waited = time.perf_counter(), self.waiting.seconds
        yield
        self.transferred += time.perf_counter() - started - (self.waiting.seconds - waited)

    def _next_scratch(self, size: int) -> list[NDArray[np.uint8]]:
        # Two in turn: a rank may fill one for the next sum while another still reads the last.
        self._scratch.reverse()
        if not self._scratch[0] or len(self._scratch[0][0]) < size:
            self._scratch[0] = self.allocate(size, np.uint8)
        return self._scratch[0]

    def end(self, status: int) -> None:
        """Leave MPI: all ranks are about to exit with this status. At exit, nothing would watch over it.

        Where that hangs, because a node or the launcher's own is gone, the process ends with status 1.
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
    """Cores that this rank may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
