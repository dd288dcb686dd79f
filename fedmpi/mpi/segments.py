"""Arrays in memory shared by the ranks of a node."""

from __future__ import annotations

import os

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from fedmpi.errors import BadInput

# Matrix libraries choose code by alignment: whatever a rank may compute with starts on a cache line.
ALIGNMENT = 64


class Segments:
    """Arrays of one length and type that all ranks of a node can read and write.

    All ranks of the node must make them together. They are kept until the job ends, because views may exist anywhere.

    Args:
        node: the ranks that share memory.
        count: elements of each array.
        dtype: of the elements.
        number: number of arrays; default: one per rank.

    Attributes:
        arrays: [count] each; zeros at first.

    Raises:
        TooLittleMemory: on all ranks of the node. (Without this check the job would end by a bus error at the first
            access.)
    """

    def __init__(self, node: MPI.Intracomm, count: int, dtype: DTypeLike, number: int | None = None) -> None:
        dtype, number = np.dtype(dtype), number or node.Get_size()
        size = -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        total, first = size * number, node.Get_rank() == 0
        if node.Get_size() > 1 and node.bcast(first and total > room(), root=0):
            raise TooLittleMemory.here(total)
        self._window: MPI.Win | None = None
        if node.Get_size() > 1:
            self._window = MPI.Win.Allocate_shared(total + ALIGNMENT if first else 0, 1, comm=node)
            self._window.Lock_all()  # for `publish`
            memory = np.frombuffer(self._window.Shared_query(0)[0].cast("B"), np.uint8)
        else:  # nothing to share, so nothing that MPI would keep until the process ends
            memory = np.zeros(total + ALIGNMENT, dtype=np.uint8)
        begin = -memory.ctypes.data % ALIGNMENT
        starts = [begin + place * size for place in range(number)]
        self.arrays = [memory[start : start + count * dtype.itemsize].view(dtype) for start in starts]

    def publish(self) -> None:
        """A memory barrier: writes of this rank become visible to the others, and theirs to this rank."""
        if self._window is not None:
            self._window.Sync()


class TooLittleMemory(BadInput):
    """A node has too little shared memory."""

    @classmethod
    def here(cls, needed: int) -> TooLittleMemory:
        """The error that this number of bytes is not free on this node."""
        return cls(
            f"/dev/shm on {MPI.Get_processor_name()} is too small: {needed >> 20} MiB more are needed; enlarge it"
            " (in a container: --shm-size), or start fewer ranks per node"
        )


def room() -> int:
    """Free bytes of shared memory on this node."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 1 << 62  # no such place here, so nothing known against it
    return status.f_bavail * status.f_frsize
