"""Which rank trains which client of a cohort."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


def place(cost: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """Longest first, each to the rank with the least work so far (Graham, 1969: at most 4/3 of the best makespan).

    A pure function of its arguments, so that every rank computes the same placement without a message.

    Args:
        cost: [m] expected work of each client, in any unit.
        ranks: how many ranks train.

    Returns:
        [m] numbers in 0..ranks-1.
    """
    load = [(0, rank) for rank in range(ranks)]
    placement = np.empty(len(cost), dtype=np.int64)
    for client in np.argsort(-cost, kind="stable"):
        work, rank = heapq.heappop(load)
        placement[client] = rank
        heapq.heappush(load, (work + int(cost[client]), rank))
    return placement
