"""Arrays of which a node holds one copy, readable by all its ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedmpi.mpi.node import Segments
from fedmpi.mpi.world import World


def share(world: World, read: Callable[[], list[NDArray]]) -> list[NDArray]:
    """Call `read` on one rank a node and give every rank of the node the arrays, in shared memory.

    Raises:
        BadInput: `read` raised it, or the node's shared memory is too small; on every rank alike.
    """
    arrays: list[NDArray] = []
    with world.agreed():
        if world.leads:
            arrays = read()
    layout = world.node.bcast([(array.shape, array.dtype) for array in arrays])
    with world.agreed():
        shared = [Segments(world.node, int(np.prod(s)), dtype, number=1).arrays[0].reshape(s) for s, dtype in layout]
    for target, source in zip(shared, arrays, strict=False):
        target[...] = source
    world.meet()
    return shared
