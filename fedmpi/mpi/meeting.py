"""The ranks of a job: their nodes, their barriers, and what they agree on.

Two rules hold for every collective here and above. First, a waiting rank sleeps. Within a node, the last rank that
arrives wakes the others. Between nodes, one rank of each node starts calls of MPI that do not block, and looks from
time to time whether they are over. (MPI implementations spin inside blocking calls, and a spinning server would take
a core away from the clients.) Second, an error on any rank reaches rank 0 while it waits. If a rank does not answer
within the deadline, the job ends (`fedmpi.mpi.guard`), so no job hangs.

The ranks of a node meet before and after a transfer. Nodes do not, because they would wait for messages once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from mpi4py import MPI

from fedmpi.errors import BadInput
from fedmpi.mpi.bell import Bell
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
        meetings: number of meetings (barriers), of a node or of all ranks, that this rank has reached.
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
        self._rings = 0
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
        self.bell = Bell(self._arrivals.arrays[0][2:].view(np.int32)[:1])
        self.waiting = Waiting(self.bell, self.failures, self.guard, crowd=max(self.node.Get_size() / _cores(), 1))

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

    def meet(self) -> None:
        """A barrier: sleep until every rank has arrived.

        What a rank wrote into shared memory before is then visible to the others.
        """
        if self.size == 1:
            return
        self.arrive()
        self._await_node()
        if self.nodes > 1:
            if self.leaders:
                self.waiting.poll(self.comparing(always=True))
                self._arrivals.arrays[0][1] = self.meetings
                self.wake_node()
            self.waiting.meet(lambda: bool(self._arrivals.arrays[0][1] >= self.meetings))
            self.publish()
        self._claims, self._word = (), 0

    def meet_node(self, *words: int) -> tuple[int, ...]:
        """A barrier of the ranks of this node.

        Returns: The (at most three) `words` of the first rank of this node. Their number must be the same on all
            ranks.
        """
        self.arrive(*words)
        return self.await_node(len(words))

    def arrive(self, *words: int) -> None:
        """Reach a barrier of this node, without waiting for its other ranks, which can continue."""
        self.meetings += 1
        mine = self._arrivals.arrays[self.node.Get_rank()]
        first = self._first_word
        mine[first : first + len(words)] = words
        mine[first + WORDS] = self._word
        self.publish()
        mine[0] = self.meetings
        self.publish()  # otherwise two ranks that arrive at once may miss each other
        if self._all_arrived():
            self.wake_node()

    def await_node(self, words: int = 0) -> tuple[int, ...]:
        """Wait for the other ranks of this node after `arrive`, which has the same number of words; returns these."""
        self._await_node()
        self._claims, self._word = (), 0
        first = self._first_word
        return tuple(self._arrivals.arrays[0][first : first + words].tolist())

    def publish(self) -> None:
        """Let the ranks of this node see what this rank has written into shared memory before, and the reverse."""
        self._arrivals.publish()

    def wake_node(self) -> None:
        """Wake the sleeping ranks of this node, to let them look at what this rank has written."""
        self.publish()
        self._rings += 1
        self.bell.ring(self._rings * self.size + self.rank)

    def until(self, is_over: Callable[[], bool]) -> None:
        """Sleep until a rank of this node has made a condition true, and has woken the others."""

        def seen() -> bool:
            self.publish()
            return is_over()

        self.waiting.meet(seen)

    def _await_node(self) -> None:
        self.waiting.meet(self._all_arrived)
        self.publish()
        if self._claims:
            place = self._first_word + WORDS
            self._compare(self._claims, self._word, (array[place] for array in self._arrivals.arrays))

    def _all_arrived(self) -> bool:
        return all(array[0] >= self.meetings for array in self._arrivals.arrays)

    @property
    def _first_word(self) -> int:
        return 3 + (WORDS + 1) * (self.meetings % 2)

    def vouch(self, claims: Mapping[str, int]) -> None:
        """Check that all ranks hold the same; must be called on all of them. It costs no additional message.

        The checksums are compared at the next meeting or transfer. Calls whose memory or partners depend on them meet
        first.

        Args:
            claims: description of the problem -> checksum, in the same order on every rank; at most three.

        Raises:
            RanksDiffer: a checksum differs between ranks. It is raised at the next meeting or transfer, on at least
                one rank; the others wait, and learn of its failure.
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

    def comparing(self, root: int | None = None, always: bool = False) -> Callable[[], bool]:
        """Start to compare the claims of this node with those of other nodes; for `leaders`.

        Args:
            root: the node whose claims the others compare theirs with; it does not wait for them. None: all do.
            always: also if there are no claims.

        Returns: Whether the comparison is over; raises RanksDiffer.
        """
        if not self.leaders or not (always or self._claims):
            return lambda: True
        claims, word = self._claims, self._word
        words = np.array([word, ~word])
        if root is None:
            request = self.leaders.Iallreduce(MPI.IN_PLACE, words, op=MPI.MIN)
        else:
            request = self.leaders.Ibcast(words, root=root)

        def is_over() -> bool:
            done: bool = request.Test()
            if done:
                self._compare(claims, word, [words[0], ~words[1]])
            return done

        return is_over

    def _compare(self, claims: Sequence[str], own: int, words: Iterable[int]) -> None:
        """Raise RanksDiffer for the first claim whose checksum differs from another rank's."""
        for word in words:
            for place, claim in enumerate(claims):
                if (int(word) ^ own) >> (CLAIM_BITS * place) & ((1 << CLAIM_BITS) - 1):
                    raise RanksDiffer(claim)

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
