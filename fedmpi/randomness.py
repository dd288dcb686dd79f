"""Random streams keyed by (seed, purpose, round, client): the same numbers on any rank, in any order of use.

A key is 64 bits. `stream` turns one into a NumPy generator (counter-based Philox) for everything that is drawn
seldom; `hashed_bits` draws from many keys at once, which is what the order of the clients' samples needs: there,
a generator object a client would cost more than the training of a small model.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@cache
def _purpose_bits(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits into 64 bits, one to one (the finaliser of SplitMix64, Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, purpose: str, round: int = 0, clients: ArrayLike = 0) -> NDArray[np.uint64]:
    """One key for each client: an array of the shape of `clients`."""
    with np.errstate(over="ignore"):
        base = np.atleast_1d(np.uint64(_purpose_bits(seed, purpose)))
        base = _mix(base + _GOLDEN * np.uint64(round + 1))
        mixed = _mix(base + _GOLDEN * (np.asarray(clients).astype(np.uint64) + np.uint64(1)))
    return mixed.reshape(np.shape(clients))


def key(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """The key of one client as an int below 2^63, the range that `torch.Generator.manual_seed` takes."""
    return int(keys(seed, purpose, round, client)) >> 1


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """A generator of its own for this purpose, round and client."""
    return np.random.Generator(np.random.Philox(key=int(keys(seed, purpose, round, client))))


def uniform(seed: int, purpose: str, round: int, clients: ArrayLike) -> NDArray[np.float64]:
    """One number in [0, 1) for each client: an array of the shape of `clients`."""
    return (keys(seed, purpose, round, clients) >> np.uint64(11)) * 2.0**-53


def hashed_bits(of: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """[K, count] random 64-bit words for K keys; row k depends on key k alone, element i on the key and i."""
    with np.errstate(over="ignore"):
        counters = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        return _mix(_mix(of[:, None] + counters) ^ of[:, None])
