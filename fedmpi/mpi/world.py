"""The ranks of a job: who serves and who trains, how they exchange flat buffers, wait, agree and fail.

Two rules hold for every collective here. A rank that waits sleeps: ranks first meet, those of a node where the last
to come wakes the others, and only when all have arrived does the transfer itself run, at the full speed of MPI's
blocking calls. (MPI implementations spin inside blocking calls; a server that spins takes a core away from the
clients.) And an error on any rank reaches rank 0 while it waits. A rank that nobody hears of for longer than the
deadline ends the job (`fedmpi.mpi.guard`), so that no job hangs.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike, NDArray

from fedmpi import streams
from fedmpi.errors import BadInput
from fedmpi.mpi.bell import Bell
from fedmpi.mpi.guard import Guard, do_not_end, end_soon
from fedmpi.mpi.segments import FixedPoint, Segments, SharedMean, TooLittleMemory, room

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
# How long rank 0 collects what the other ranks say when the deadline has passed.
COLLECTING_SECONDS = 2.0
# How long ranks may take to leave MPI together.
LEAVING_SECONDS = 15.0
# Kinds of messages about failures: the report of an error; what a rank says of itself when the deadline has passed.
REPORT, NOTE = 0, 1
# How long the launcher has to pass on what was printed, before the end of the job closes its pipes.
FORWARDING_SECONDS = 0.5
# Well below 2^31, the largest count that an MPI-3 library takes.
CHUNK_ELEMENTS = 1 << 28
# How many results of a sum lie in memory: the one that rank 0 still has, and the next.
RESULTS = 2
# Bytes of shared memory that MPI libraries take for each rank once they move large vectors.
MPI_FOR_A_RANK = 3 << 20
# How much the first rank of a node can say at a meeting.
WORDS = 3
# How many claims ranks can vouch for at a time, and with how many bits each: together they are one word.
CLAIMS, CLAIM_BITS = 3, 21
NOWHERE = -1

T = TypeVar("T")


class RemoteFailure(Exception):
    """Another rank failed; the message is its report, which rank 0 prints on its behalf."""


class Silence(Exception):
    """Other ranks have not come for longer than the deadline."""


class RanksDiffer(Exception):
    """Ranks have made different things of what should have been the same; the message says which, for the user."""


class World:
    """The ranks of one job. Rank 0 is the server; the others train, and so does rank 0 when it is alone.

    Args:
        comm: the communicator of the job; default `MPI.COMM_WORLD`.
        ranks_a_node: pretend that so many consecutive ranks share memory, whatever is the case.
        guard: ends this process when it waits for others for longer than the deadline; null: nothing does.

    Attributes:
        rank, size: this rank and their number.
        workers: the ranks that host clients, in order.
        node: the ranks that share this rank's memory.
        nodes: how many nodes there are.
        hosts: the name of each rank's node.
        leads: whether this rank speaks for its node.
        stands_in: whether it speaks for its node where rank 0 does not answer.
        waited: seconds this rank has slept for others so far.
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
        self.hosts: list[str] = self.comm.allgather(self.host)
        self.leads = self.node.Get_rank() == 0
        self.stands_in = self.node.Get_rank() == (1 if self.node.bcast(self.is_server) else 0)
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
        problem: BadInput | None = None
        try:
            self._arrivals = Segments(self.node, 3 + 2 * (WORDS + 1), np.int64)
        except TooLittleMemory as error:
            problem = error
        self._raise_agreed(problem)
        self._claims: Sequence[str] = ()
        self._word = 0
        self._bell = Bell(self._arrivals.arrays[0][2:].view(np.int32)[:1])
        self._broadcasts: list[NDArray[np.uint8]] = []
        self._means: list[SharedMean] = []
        self._scratch: list[list[NDArray[np.uint8]]] = [[], []]
        self._notes: dict[int, bytes] = {}
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
                    self._raise_failure()
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
            self.guard.passed()
            return
        with self._waiting() as elapsed:
            while True:
                last = self._bell.last
                if is_over():
                    return
                if elapsed() > SPIN_SECONDS:
                    self._raise_failure()
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
        self.guard.passed()

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
                self.meet()  # before a call of MPI that all ranks of a node make together
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
            self._broadcasts[number : number + 1] = self.allocate(size, np.uint8, number=1)
        return self._broadcasts[number]

    def _next_scratch(self, size: int) -> list[NDArray[np.uint8]]:
        # Two in turn: a rank may fill one for the next sum while another still reads the last.
        self._scratch.reverse()
        if not self._scratch[0] or len(self._scratch[0][0]) < size:
            self._scratch[0] = self.allocate(size, np.uint8)
        return self._scratch[0]

    # Memory

    def allocate(self, count: int, dtype: DTypeLike, number: int | None = None) -> list[NDArray]:
        """Arrays [count] of each node, as `Segments` makes them; a collective.

        Raises:
            BadInput: the shared memory of some node is too small; on every rank alike.
        """
        self.meet()
        with self.agreed():
            return Segments(self.node, count, dtype, number).arrays

    def check_room(self, broadcast: int, summed: int) -> None:
        """Make sure that every node has memory for a round; a collective.

        Args:
            broadcast: numbers that rank 0 sends to all others in the round, in all vectors.
            summed: numbers of all vectors that are sums over the ranks.

        Raises:
            BadInput: the shared memory of some node is too small; on every rank alike.
        """
        ranks = self.node.Get_size()
        needed = 4 * broadcast + (8 * ranks + 4 * RESULTS) * summed
        needed += min(needed, ranks * MPI_FOR_A_RANK)
        with self.agreed():
            if self.leads and ranks > 1 and needed > room():
                raise TooLittleMemory.here(needed)

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

    # Failure

    def _raise_failure(self) -> None:
        """Raise what this rank has heard of while it waits: the deadline has passed, or another rank has failed."""
        if self.guard.exceeded:
            raise Silence
        # Asked on every rank: it also lets MPI get on with what other ranks want of this one.
        if self._failures.Iprobe() and self.is_server:
            tag, _, text = self._heard()
            if tag == NOTE:
                self.guard.expire()
                raise Silence
            raise RemoteFailure(text)

    def _heard(self) -> tuple[int, int, str]:
        """The next message about a failure, which has come: its tag, rank and text. Notes are remembered."""
        status = MPI.Status()
        self._failures.Probe(status=status)
        text = bytearray(status.Get_count(MPI.BYTE))
        tag, source = status.Get_tag(), status.Get_source()
        self._failures.Recv(text, source=source, tag=tag)
        if tag == NOTE:
            self._notes[source] = bytes(text)
        return tag, source, text.decode(errors="replace")

    def announce_end(self) -> None:
        """Rank 0 tells all others that it is ending the job: once before it writes what may be large, once after."""
        for rank in range(1, self.size) if self._may_talk else ():
            self._failures.Isend(b"", dest=rank, tag=REPORT)

    def report_failure(self, report: str, tag: int = REPORT, unanswered: str | None = None) -> NoReturn:
        """Hand a worker's report to rank 0, which prints it and ends the job; if it does not, do so here.

        Args:
            report: what rank 0 is told.
            tag: REPORT, or NOTE if the report is a `note`.
            unanswered: what is printed here in place of the report; empty: nothing.
        """
        if self._may_talk:
            request = self._failures.Isend(report.encode(), dest=0, tag=tag)
            deadline, answers = time.monotonic() + PATIENCE_SECONDS, 0
            while time.monotonic() < deadline:
                request.Test()
                if self._failures.Iprobe(source=0):
                    self._failures.Recv(bytearray(), source=0)
                    answers += 1
                    deadline = time.monotonic() + (ENDING_SECONDS if answers == 1 else PATIENCE_SECONDS)
                time.sleep(LONGEST_SLEEP)
            if answers > 1:
                self.abort()  # the launcher should have ended this process, but cannot
        self.abort(report if unanswered is None else unanswered)

    @property
    def _may_talk(self) -> bool:
        """Whether this thread may call MPI: the guard's may not if the library is made for one thread."""
        is_main = threading.current_thread() is threading.main_thread()
        return is_main or MPI.Query_thread() == MPI.THREAD_MULTIPLE

    def note(self, where: str) -> str:
        """What a rank tells rank 0 when the deadline has passed; `where` it is in the experiment."""
        stack = "".join(traceback.format_list(self.guard.stack()))
        return json.dumps({"meeting": self._meetings, "where": where, "stack": stack})

    def who_is_late(self, where: str) -> str:
        """At rank 0, when the deadline has passed: which ranks did not come, and what those do instead that answer.

        A rank whose own report of an error arrives now has caused the silence: its report is returned instead.
        """
        self._notes[0] = self.note(where).encode()
        began = time.monotonic()
        while self._may_talk and len(self._notes) < self.size and time.monotonic() - began < COLLECTING_SECONDS:
            if self._failures.Iprobe():
                tag, _, text = self._heard()
                if tag == REPORT:
                    return text
            else:
                time.sleep(LONGEST_SLEEP)
        notes = {rank: json.loads(note) for rank, note in self._notes.items()}
        lines = [
            f"fedmpi: failed on rank 0 of {self.size}: {where}: not all ranks came within the deadline of "
            f"{self.guard.exceeded:.0f} s (--deadline)"
        ]
        if silent := [rank for rank in range(self.size) if rank not in notes]:
            lines.append(f"{self._named(silent)}: no answer")
        busy = {rank: note for rank, note in notes.items() if note["stack"]}
        for rank, note in sorted(busy.items()):
            lines.append(f"{self._named([rank])}: did not come; {note['where']}, at\n{note['stack'].rstrip()}")
        if not silent and not busy:
            meetings = {rank: f"{note['where']}, meeting {note['meeting']}" for rank, note in sorted(notes.items())}
            for what in dict.fromkeys(meetings.values()):
                ranks = [rank for rank, its in meetings.items() if its == what]
                lines.append(f"{self._named(ranks)}: waiting at {what}, while others wait elsewhere")
        return "\n".join(lines)

    def _named(self, ranks: Sequence[int]) -> str:
        """These ranks and their nodes, in words."""
        nodes: dict[str, list[int]] = {}
        for rank in ranks:
            nodes.setdefault(self.hosts[rank], []).append(rank)
        some = [
            f"rank{'s' if len(of_node) > 1 else ''} {', '.join(map(str, of_node))} on {host}"
            for host, of_node in nodes.items()
        ]
        return " and ".join(some)

    def abort(self, report: str = "", status: int = 1) -> NoReturn:
        """Print a report and end all ranks at once with this exit status; this process at least, if MPI cannot."""
        end_soon()
        if report:
            streams.say(report, "stderr")
        streams.flush()
        time.sleep(FORWARDING_SECONDS)
        self.comm.Abort(status)
        os._exit(status)

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
