"""Vectors on their way between nodes, in blocks: where a node stands, and how a vector gets from one node to all.

Nodes form a tree. Small vectors take a binomial tree, in which all nodes are reached after log2 N messages. Large
ones take a chain: each node passes a block on while the next one arrives. So the link of each node carries the vector
once in and once out, however many nodes there are.
"""

from __future__ import annotations

from collections import deque
from math import ceil, log2

from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.mpi.buffers import chunks
from fedmpi.mpi.waiting import Waiting

# Of a message of a vector that is passed on.
BLOCK_BYTES = 1 << 18


def steps_of(blocks: int, nodes: int) -> tuple[int, int]:
    """How often one block after the other is sent until all nodes have all: in a binomial tree, and in a chain."""
    return blocks * ceil(log2(nodes)), blocks + nodes - 2


def relatives(node: int, nodes: int, blocks: int, root: int = 0) -> tuple[int | None, list[int]]:
    """The parent of a node (None: it is the root) and its children, those with the most descendants first.

    Args:
        blocks: number of blocks of the vector, for which a binomial tree or a chain takes fewer steps.
    """
    tree, chain = steps_of(blocks, nodes)
    place = (node - root) % nodes
    if chain < tree:
        parent, children = place - 1, [place + 1]
    else:
        lowest = place & -place or 1 << nodes.bit_length()
        parent = place - lowest
        children = [place + (1 << bit) for bit in reversed(range(lowest.bit_length() - 1))]
    return (
        (parent + root) % nodes if place else None,
        [(child + root) % nodes for child in children if child < nodes],
    )


class Descent:
    """A vector on its way from one node to all others.

    Args:
        leaders: one rank of each node.
        waiting: is informed when something has moved.
        array: the vector, or memory for it.
        root: the node that has it.
    """

    def __init__(self, leaders: MPI.Intracomm, waiting: Waiting, array: NDArray, root: int) -> None:
        self._leaders = leaders
        self._waiting = waiting
        self._blocks = list(chunks(array, BLOCK_BYTES // array.itemsize))
        parent, self._children = relatives(leaders.Get_rank(), leaders.Get_size(), len(self._blocks), root)
        self._arriving = deque(leaders.Irecv(block, parent) for block in self._blocks if parent is not None)
        self._leaving: deque[MPI.Request] = deque()
        self._passed_on = 0

    def has_arrived(self) -> bool:
        """Whether this node has the vector; passes on what has arrived."""
        while self._arriving and self._arriving[0].Test():
            self._arriving.popleft()
            self._waiting.moved()
        while self._passed_on < len(self._blocks) - len(self._arriving):
            block = self._blocks[self._passed_on]
            self._leaving += [self._leaders.Isend(block, child) for child in self._children]
            self._passed_on += 1
        return not self._arriving

    def is_over(self) -> bool:
        """Whether this node has the vector, and its children have it or will get it without further calls."""
        has_arrived = self.has_arrived()
        while self._leaving and self._leaving[0].Test():
            self._leaving.popleft()
            self._waiting.moved()
        return has_arrived and not self._leaving
