"""Checksums for comparing ranks."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What a user can do about code that gives something else on every rank.
REMEDY = (
    "it must not depend on rank, process, host or time, and must draw from the generator that it is given, or from"
    " the global ones of random, numpy.random and torch, which are seeded alike on every rank"
)


def checksum(*parts: NDArray[Any] | float | str) -> int:
    """A 32-bit checksum of arrays, numbers and texts: of their order, types, shapes and bytes."""
    total = 0
    for part in parts:
        array = np.asarray(part)
        total = zlib.crc32(f"{array.dtype.str} {array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return total
