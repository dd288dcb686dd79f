"""Views of contiguous arrays for the collectives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Well below 2^31, the largest count that an MPI-3 library takes.
CHUNK_ELEMENTS = 1 << 28


def chunks(array: NDArray, elements: int | None = None) -> Iterator[NDArray]:
    """Flat parts of an array, each small enough for one MPI call, and of so many elements at most."""
    flat = array.reshape(-1)
    assert np.shares_memory(flat, array) or not array.size, "MPI needs a contiguous buffer"
    width = min(elements or CHUNK_ELEMENTS, CHUNK_ELEMENTS)
    for start in range(0, len(flat), width):
        yield flat[start : start + width]


def reshaped_like(memory: NDArray[np.uint8], like: NDArray) -> NDArray:
    """The beginning of `memory` as an array of the same shape and type."""
    return memory[: like.nbytes].view(like.dtype).reshape(like.shape)


def offset_in(array: NDArray, memory: NDArray) -> int | None:
    """Offset in bytes of an array in `memory`; None: it is not in it."""
    offset: int = array.ctypes.data - memory.ctypes.data
    return offset if 0 <= offset < memory.nbytes else None
