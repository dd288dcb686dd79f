"""Checksums for comparing ranks, and for naming tensors that are kept elsewhere."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
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
        if array.size > 1 and not any(array.strides):  # the same number everywhere
            array = array[(0,) * array.ndim]
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return total


def sha256_of(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of tensors: of their names in alphabetical order, and each one's type, shape and row-major bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
