"""Random streams keyed by (seed, purpose, round, client): the same numbers on any rank, in any order of use.

A key has 64 bits. `stream` makes a NumPy generator (counter-based Philox) from a key, for rare draws. `hashed_bits`
draws from many keys at once, for the order of the clients' samples: one generator object per client would take longer
than training a small model.

User code may also draw from the global generators of Python, NumPy and PyTorch. `seed_globals` seeds them with a key,
the same on every rank, before such code runs.
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Of SplitMix64 (Steele et al., 2014): the golden ratio, which spreads counters, and its finaliser.
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MASK = 2**64 - 1
# Four suffice for large ranges.
_FEISTEL_ROUNDS = 6
# Held by the thread that uses the global generators, because all threads of a process share them.
_GLOBALS = threading.RLock()

# Purposes for which fedmpi itself draws, without the numbers at their end, and what others begin with.
_OWN = frozenset(
    {
        *("attack", "cohort", "constructors", "download", "dropout", "evaluation", "generator's noise"),
        *("generator's own draws", "groups", "imports", "initial weights", "labels", "lesson", "malicious"),
        *("partition", "pixels", "poisoned labels", "poisoned samples", "privacy", "seconds per step"),
        *("test samples of a table", "test shards", "training at the server", "upload", "validation"),
    }
)
_OF_METHODS = "method: "
_BEGINNINGS = ("own: ", "samples of ", "subset ", _OF_METHODS)


def of_method(purpose: str) -> str:
    """The purpose for which a method draws that calls it so: never one for which fedmpi itself draws.

    It is another one only where it must be, so that the numbers of methods stay what they are.
    """
    is_taken = purpose.startswith(_BEGINNINGS) or purpose.rstrip("0123456789").rstrip() in _OWN
    return _OF_METHODS + purpose if is_taken else purpose


@cache
def _purpose_bits(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective hash of 64 bits."""
    x = (x ^ (x >> np.uint64(_SHIFTS[0]))) * np.uint64(_FACTORS[0])
    x = (x ^ (x >> np.uint64(_SHIFTS[1]))) * np.uint64(_FACTORS[1])
    return x ^ (x >> np.uint64(_SHIFTS[2]))


def _mix_one(x: int) -> int:
    """The same for one number, because NumPy takes ten times as long as Python."""
    x &= _MASK
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0] & _MASK
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1] & _MASK
    return x ^ (x >> _SHIFTS[2])


def _key(seed: int, purpose: str, round: int, client: int) -> int:
    base = _mix_one(_purpose_bits(seed, purpose) + _GOLDEN * (round + 1))
    return _mix_one(base + _GOLDEN * (client + 1))


def keys(seed: int, purpose: str, round: int = 0, clients: ArrayLike = 0) -> NDArray[np.uint64]:
    """One key per client: an array of the shape of `clients`."""
    clients = np.asarray(clients)
    if clients.size == 1:
        return np.full(clients.shape, _key(seed, purpose, round, clients.item()), dtype=np.uint64)
    base = _mix_one(_purpose_bits(seed, purpose) + _GOLDEN * (round + 1))
    with np.errstate(over="ignore"):
        return _mix(np.uint64(base) + np.uint64(_GOLDEN) * (clients.astype(np.uint64) + np.uint64(1)))


def key(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """The key of one client as an int below 2^63, the range of `torch.Generator.manual_seed`."""
    return _key(seed, purpose, round, client) >> 1


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """A separate generator for this purpose, round and client."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, round, client)))


def uniform(seed: int, purpose: str, round: int, clients: ArrayLike) -> NDArray[np.float64]:
    """One number in [0, 1) per client: an array of the shape of `clients`."""
    return (keys(seed, purpose, round, clients) >> np.uint64(11)) * 2.0**-53


def hashed_bits(of: NDArray[np.uint64], count: int, first: int = 0) -> NDArray[np.uint64]:
    """[K, count] random 64-bit words for K keys, from word `first` on. Row k depends only on key k."""
    with np.errstate(over="ignore"):
        counters = np.uint64(_GOLDEN) * np.arange(first + 1, first + count + 1, dtype=np.uint64)
        return _mix(_mix(of[:, None] + counters) ^ of[:, None])


def permuted(of: NDArray[np.uint64], places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """[m] where random permutations of range(count) put these places [m]; each place has the permutation of its key.

    So one place is found without the others. A place is a pair of numbers below a and b, with a b hardly above
    `count`. In turns, a hash of one is added to the other, modulo a or b (a Feistel network, Luby and Rackoff, 1988).
    A result of `count` or more is permuted again (Black and Rogaway, 2002).

    Args:
        of: [m] keys.
    """
    a = isqrt(max(count - 1, 0)) + 1
    b = -(-count // a)
    counters = np.uint64(_GOLDEN) * np.arange(1, _FEISTEL_ROUNDS + 1, dtype=np.uint64)
    rounds = _mix(of + counters[:, None])
    sizes = np.uint64(a), np.uint64(b)
    found, outside = places.astype(np.uint64), np.arange(len(places))
    while len(outside):
        pair = [*np.divmod(found[outside], sizes[1])]
        for number, keys in enumerate(rounds[:, outside]):
            one, other = number % 2, 1 - number % 2
            pair[one] = (pair[one] + _mix(keys ^ pair[other]) % sizes[one]) % sizes[one]
        found[outside] = pair[0] * sizes[1] + pair[1]
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def seed_globals(key: int) -> None:
    """Seed the generators of the modules `random`, `numpy.random` and `torch`; takes 16 microseconds.

    Args:
        key: below 2^63; NumPy's generator takes the last 32 bits.
    """
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 (it is what others draw from)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(key)  # torch.manual_seed keeps stack traces where there is no GPU
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(key)


@contextmanager
def globals_kept() -> Iterator[None]:
    """Restore the state of the generators of `seed_globals` afterwards; takes 0.2 ms.

    One thread does so at a time, and others wait. Otherwise the seeds of one would change the numbers of another.
    """
    torch = sys.modules.get("torch")
    with _GLOBALS:
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        of_torch = torch.get_rng_state() if torch else None
        of_gpu = torch.cuda.get_rng_state() if torch and torch.cuda.is_initialized() else None
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            if torch and of_torch is not None:
                torch.set_rng_state(of_torch)
            if torch and of_gpu is not None:
                torch.cuda.set_rng_state(of_gpu)
