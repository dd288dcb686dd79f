"""Building blocks of partitions. An array `owner` [n] holds the client of each sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.data.client_samples import Integers, ListedSamples

NOBODY = -1


def apportion(weights: NDArray, total: int, rng: np.random.Generator) -> Integers:
    """Whole numbers of sum `total` in proportion to `weights`, by largest remainders, ties at random."""
    exact = weights * (total / weights.sum())
    parts: Integers = np.floor(exact).astype(np.int64)
    missing = total - parts.sum()
    rest, tie = parts - exact, rng.random(len(parts))
    if missing:
        # With very many clients only those that may get one more sample are sorted.
        near = np.flatnonzero(rest <= np.partition(rest, missing - 1)[missing - 1])
        best_first = near[np.lexsort((tie[near], rest[near]))]
        parts[best_first[:missing]] += 1
    return parts


def draw_classes(priors: NDArray[np.float64], turns: Integers, left: Integers, rng: np.random.Generator) -> Integers:
    """[turns] the class drawn in each turn, from the client's prior over the classes that have samples left.

    Args:
        priors: [clients, C] class shares.
        turns: [turns] the client whose turn it is.
        left: [C] samples of each class; in total at least as many as there are turns.
    """
    taken = np.empty(len(turns), np.int64)
    left = left.copy()
    done = 0
    while done < len(turns):  # each pass completes its chunk of turns, or uses up a class
        chunk = turns[done : done + 4096]
        # The small term is for a client whose prior has no class left: it takes any class that is left.
        shares = np.cumsum((priors[chunk] + 1e-30) * (left > 0), axis=1)
        point = rng.random(len(chunk)) * shares[:, -1]
        drawn = np.minimum((shares <= point[:, None]).sum(axis=1), np.flatnonzero(left)[-1])
        wanted = np.cumsum(drawn[:, None] == np.arange(len(left)), axis=0)
        too_many = (wanted > left).any(axis=1)
        valid = int(too_many.argmax()) if too_many.any() else len(chunk)
        taken[done : done + valid] = drawn[:valid]
        left -= np.bincount(drawn[:valid], minlength=len(left))
        done += valid
    return taken


def top_up(owner: Integers, clients: int, least: int, rng: np.random.Generator) -> Integers:
    """Move random samples from the largest clients, all cut to the same size, to clients with fewer than `least`."""
    sizes = np.bincount(owner, minlength=clients)
    missing = np.maximum(least - sizes, 0)
    if not missing.any():
        return owner
    # The highest level that yields enough if all larger clients are cut to it.
    low, high = least, int(sizes.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.maximum(sizes - middle, 0).sum() >= missing.sum() else (low, middle)
    given = np.maximum(sizes - low, 0)
    spare = given.sum() - missing.sum()
    given[np.flatnonzero(given)[:spare]] -= 1
    by_client = np.lexsort((rng.random(len(owner)), owner))
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = rng.permutation(by_client[rank < np.repeat(given, sizes)])
    topped: Integers = owner.copy()
    topped[moved] = np.repeat(np.arange(clients), missing)
    return topped


def by_owner(owner: Integers, clients: int) -> ListedSamples:
    """The samples of each client in rising order; those of `NOBODY` are left out."""
    order = np.argsort(owner, kind="stable")
    kept = order[np.searchsorted(owner[order], 0) :]
    return ListedSamples(kept, owner[kept], clients)
