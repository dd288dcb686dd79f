"""Arrays with one copy per node, which all its ranks can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedmpi.mpi.segments import ALIGNMENT
from fedmpi.mpi.world import World


def share(world: World, read: Callable[[], dict[str, NDArray]]) -> dict[str, NDArray]:
    """Call `read` on one rank per node, and return its arrays by name, in shared memory, on every rank.

    Raises:
        BadInput: `read` raised it, or the node's shared memory is too small; on every rank alike.
    """
    arrays: dict[str, NDArray] = {}
    with world.agreed():
        if world.leads:
            arrays = read()
    layout = world.node.bcast([(name, array.shape, array.dtype) for name, array in arrays.items()])
    shared: dict[str, NDArray] = {}
    for name, shape, dtype in layout:
        shared[name] = world.allocate(int(np.prod(shape)), dtype, number=1)[0].reshape(shape)
    for name, array in arrays.items():
        shared[name][...] = array
    world.meet()
    return shared


def share_aligned(world: World, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Copies of one rank's arrays in shared memory, with the same strides, on every rank of the node; a collective.

    Every rank gives the same arrays. All copies lie in one piece of memory, because MPI can make only some hundreds
    of pieces. Each copy starts on a cache line.

    Args:
        arrays: by name; each is a dense array, in any order of its dimensions.

    Raises:
        BadInput: the node's shared memory is too small; on every rank alike.
    """
    places, size = {}, 0
    for name, array in arrays.items():
        places[name] = size
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    memory = world.allocate(size, np.uint8, number=1)[0]
    shared = {
        name: np.ndarray(array.shape, array.dtype, memory.data, places[name], array.strides)
        for name, array in arrays.items()
    }
    if world.leads:
        for name, array in arrays.items():
            shared[name][...] = array
    world.meet()
    return shared


def assemble_shared(
    world: World, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]
) -> NDArray[np.uint8]:
    """An array in shared memory, initially zero, of which every rank fills in a separate part.

    Raises:
        BadInput: a node's shared memory is too small; on every rank alike.
    """
    whole: NDArray[np.uint8] = world.allocate(int(np.prod(shape)), np.uint8, number=1)[0]
    fill(whole.reshape(shape))
    world.meet()
    world.sum_over_nodes(whole)
    world.meet()
    return whole.reshape(shape)
