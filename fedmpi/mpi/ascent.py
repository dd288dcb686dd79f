"""Sums of integers on their way from all nodes to rank 0's, in blocks.

Nodes form a tree, as in `fedmpi.mpi.tree`. Each block of a node has an owner, one of its ranks. The owner adds the
blocks of the node's children to the node's own, and the first rank of the node sends the result to the parent. It
does so while it and others work on later blocks.

The numbers have 64 bits, of which few are used. So a block is sent with as many bytes per number as its largest
number needs (0, 4, 5, 6 or 8). The sums are exact: every node adds whole numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.mpi.transfers import Transfers
from fedmpi.mpi.tree import relatives

# Memory of a node for blocks that have arrived and were not added yet. It should hold what a network has under way.
INBOX_BYTES = 1 << 25
# Bytes per number -> type of what is beyond the lower four.
UPPER = {5: np.int8, 6: np.int16, 8: np.int32}


def pack(numbers: NDArray[np.int64], memory: NDArray[np.uint8]) -> int:
    """Write numbers into the beginning of `memory`, in as few bytes each as all of them fit in; returns how many.

    First the lower four bytes of each number, then the others. Changes `numbers`.
    """
    low, high = int(numbers.min()), int(numbers.max())
    if low == high == 0:
        return 0
    bits = 1 + max((number if number >= 0 else ~number).bit_length() for number in (low, high))
    width = next(width for width in (4, *UPPER) if bits <= 8 * width)
    count = len(numbers)
    np.copyto(memory[: 4 * count].view(np.int32), numbers, casting="unsafe")
    if width > 4:
        numbers >>= 32
        np.copyto(memory[4 * count : width * count].view(UPPER[width]), numbers, casting="unsafe")
    return width


def add_packed(width: int, memory: NDArray[np.uint8], into: NDArray[np.int64], scratch: NDArray[np.int64]) -> None:
    """Add the numbers that `pack` wrote with this width."""
    count = len(into)
    if width == 4:
        into += memory[: 4 * count].view(np.int32)
    elif width:
        upper = scratch[:count]
        np.copyto(upper, memory[4 * count : width * count].view(UPPER[width]))
        upper <<= 32
        into += upper
        into += memory[: 4 * count].view(np.uint32)


class Ascent:
    """Blocks of integers on their way from all nodes to rank 0's, where their sums arrive.

    Every rank of a node calls `begin`, then `put` for each of the blocks that it owns, then `take` for each of them,
    in the same order.

    Args:
        ranks: of the job, on several nodes.
        blocks: memory of this node's blocks, shared by its ranks; the same number and lengths on all nodes.
        counts: how many counts are summed besides.
    """

    def __init__(self, ranks: Transfers, blocks: Sequence[NDArray[np.int64]], counts: int) -> None:
        self._ranks = ranks
        self._blocks = blocks
        node, longest = ranks.node_of[ranks.rank], max(map(len, blocks))
        self._parent, self._children = relatives(node, ranks.nodes, len(blocks))
        self._slots = min(max(INBOX_BYTES // (8 * longest * max(len(self._children), 1)), 1), len(blocks))
        inbox = ranks.allocate(8 * longest * self._slots * len(self._children), np.uint8, number=1)[0]
        self._inbox = inbox.reshape(len(self._children), self._slots, 8 * longest)
        # What has become of each block, as `_run` * 16 plus the bytes per number: it has arrived, for each child; it
        # was added; it can leave. Then the same for the counts, and the counts.
        shared = ranks.allocate((len(self._children) + 2) * len(blocks) + 1 + counts, np.int64, number=1)[0]
        *self._arrived, self._added, self._ready = shared[: -1 - counts].reshape(-1, len(blocks))
        self._counted, self._counts = shared[-1 - counts :][:1], shared[len(shared) - counts :]
        self._run = 0
        self._scratch = np.empty(longest, dtype=np.int64)

    def begin(self, counts: NDArray[np.int64]) -> None:
        """Start again, after the ranks of the node have met.

        Args:
            counts: of this node.
        """
        self._run += 1
        if not self._ranks.leaders:
            return
        self._expected = [0] * len(self._children)
        self._arriving = [deque[tuple[int, MPI.Request]]() for _ in self._children]
        self._sent = 0
        self._leaving: deque[MPI.Request] = deque()
        self._counting = counts.copy()
        self._count = self._ranks.leaders.Iallreduce(MPI.IN_PLACE, self._counting, op=MPI.SUM)
        self._advance()

    def put(self, number: int, block: NDArray[np.int64]) -> None:
        """Let this node's block leave, if nothing is added to it; it is changed."""
        if self._children:
            self._blocks[number][:] = block
        else:
            self._send(number, block)
        self._advance()

    def take(self, number: int, into: NDArray[np.int64]) -> None:
        """Wait for the blocks of this node's children, and pass the sum with its own on.

        Args:
            into: at rank 0's node it is set to the sum.
        """
        if not self._children:
            return
        into[:] = self._blocks[number]
        for arrived, inbox in zip(self._arrived, self._inbox, strict=True):
            self.until(lambda arrived=arrived: self._is_marked(arrived[number]))  # type: ignore[misc]
            add_packed(int(arrived[number]) % 16, inbox[number % self._slots], into, self._scratch)
        self._mark(self._added, number)
        if self._parent is not None:
            self._send(number, into)
        self._advance()

    def counts(self) -> NDArray[np.int64]:
        """The sum over the nodes of the counts, on every rank; waits for it."""
        self.until(lambda: self._is_marked(self._counted[0]))
        return self._counts.copy()

    def until(self, is_over: Callable[[], bool]) -> None:
        """Wait until a rank of this node has made a condition true, and let blocks move meanwhile."""
        if not self._ranks.leaders:
            self._ranks.until(is_over)
            return

        def advanced() -> bool:
            self._advance()
            return is_over()

        self._ranks.waiting.poll(advanced)

    def is_over(self) -> bool:
        """Whether all blocks have arrived at this node, and have left it; known to its first rank only."""
        if not self._ranks.leaders:
            return True
        has_sent = self._parent is None or self._sent == len(self._blocks)
        has_received = all(expected == len(self._blocks) for expected in self._expected)
        return has_sent and has_received and not any(self._arriving) and not self._leaving

    def _send(self, number: int, block: NDArray[np.int64]) -> None:
        self._mark(self._ready, number, pack(block, self._blocks[number].view(np.uint8)))

    def _advance(self) -> None:
        """Let counts and blocks move if this rank is its node's first."""
        if self._ranks.leaders:
            self._ranks.publish()
            news = self._receive_counts() | self._receive(self._ranks.leaders)
            if news:
                self._ranks.wake_node()
            if self._parent is not None:
                news |= self._pass_on(self._ranks.leaders, self._parent)
            if news:
                self._ranks.waiting.moved()

    def _receive_counts(self) -> bool:
        if self._is_marked(self._counted[0]) or not self._count.Test():
            return False
        self._counts[:] = self._counting
        self._mark(self._counted, 0)
        return True

    def _receive(self, leaders: MPI.Intracomm) -> bool:
        """Whether blocks of children have arrived."""
        has_news, status = False, MPI.Status()
        for place, (child, arriving) in enumerate(zip(self._children, self._arriving, strict=True)):
            while arriving and arriving[0][1].Test(status):
                number, _ = arriving.popleft()
                self._mark(self._arrived[place], number, status.Get_count(MPI.BYTE) // len(self._blocks[number]))
                has_news = True
            while (number := self._expected[place]) < len(self._blocks) and self._is_free(number):
                inbox = self._inbox[place, number % self._slots, : self._blocks[number].nbytes]
                arriving.append((number, leaders.Irecv(inbox, child)))
                self._expected[place] += 1
        return has_news

    def _pass_on(self, leaders: MPI.Intracomm, parent: int) -> bool:
        """Whether blocks have left."""
        while self._sent < len(self._blocks) and self._is_marked(self._ready[self._sent]):
            block = self._blocks[self._sent]
            size = len(block) * (int(self._ready[self._sent]) % 16)
            self._leaving.append(leaders.Isend(block.view(np.uint8)[:size], parent))
            self._sent += 1
        before = len(self._leaving)
        while self._leaving and self._leaving[0].Test():
            self._leaving.popleft()
        return len(self._leaving) < before

    def _is_free(self, number: int) -> bool:
        """Whether there is memory for a child's block of this number."""
        return number < self._slots or self._is_marked(self._added[number - self._slots])

    def _mark(self, marks: NDArray[np.int64], number: int, width: int = 0) -> None:
        self._ranks.publish()  # what was written before, first
        marks[number] = 16 * self._run + width

    def _is_marked(self, mark: np.int64) -> bool:
        return int(mark) >> 4 == self._run
