"""Arrays of which a node holds one copy, readable by all its ranks."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.errors import BadInput
from fedmpi.mpi.world import World

ALIGNMENT = 64


def share(world: World, read: Callable[[], list[NDArray]]) -> list[NDArray]:
    """Call `read` on one rank a node and give every rank of the node the arrays, in shared memory.

    Raises:
        BadInput: `read` raised it, or the node's shared memory is too small (a window beyond it would end the
            job by a bus error at the first touch); on every rank alike.
    """
    leader = world.node.Get_rank() == 0
    arrays: list[NDArray] = []
    with world.agreed():
        if leader:
            arrays = [np.ascontiguousarray(array) for array in read()]
            _check_room(world, sum(_padded(array.nbytes) for array in arrays))
    world.meet(world.node)
    layout = world.node.bcast([(array.shape, array.dtype.str) for array in arrays])
    sizes = [int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in layout]
    window = MPI.Win.Allocate_shared(sum(map(_padded, sizes)) if leader else 0, 1, comm=world.node)
    memory = window.Shared_query(0)[0].cast("B")
    shared, offset = [], 0
    for (shape, dtype), size in zip(layout, sizes, strict=True):
        shared.append(np.frombuffer(memory, np.dtype(dtype), size // np.dtype(dtype).itemsize, offset).reshape(shape))
        offset += _padded(size)
    for target, source in zip(shared, arrays, strict=False):
        target[...] = source
    world.meet(world.node)
    return shared


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _check_room(world: World, needed: int) -> None:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise BadInput(
            f"/dev/shm on {world.host} has {free >> 20} MiB free, the data set needs {needed >> 20} MiB:"
            " enlarge it, or let the data set's root be writable so that the arrays are kept there"
        )
