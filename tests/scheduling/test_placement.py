"""Which rank trains whom: a pure function whose longest rank is near the best possible."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.scheduling.placement import place


def makespan(cost: NDArray[np.int64], placement: NDArray[np.int64], ranks: int) -> int:
    return int(np.bincount(placement, weights=cost, minlength=ranks).max())


@pytest.mark.parametrize("ranks", [2, 3])
def test_near_the_best_of_all_placements(ranks: int) -> None:
    """Oracle: Graham's bound 4/3 - 1/(3m), against the best of all placements of 7 clients, tried one by one."""
    rng = np.random.default_rng(ranks)
    everything = np.array(list(itertools.product(range(ranks), repeat=7)))
    worst = 1.0
    for _ in range(50):
        cost = rng.integers(1, 30, 7)
        loads = np.stack([(cost * (everything == rank)).sum(1) for rank in range(ranks)])
        ratio = makespan(cost, place(cost, ranks), ranks) / loads.max(0).min()
        assert 1 <= ratio <= 4 / 3 - 1 / (3 * ranks) + 1e-12
        worst = max(worst, ratio)
    assert worst > 1, "the bound was put to the test"


@pytest.mark.parametrize("ranks", [2, 5, 16])
@pytest.mark.parametrize("clients", [1, 10, 100, 1000])
def test_near_the_lower_bound(ranks: int, clients: int) -> None:
    """Oracle: no placement is shorter than the mean load, the longest client, or the m-th and (m+1)-th together."""
    rng = np.random.default_rng(clients)
    for cost in (np.exp(1.5 * rng.standard_normal(clients) + 3).astype(int) + 1, rng.integers(1, 9, clients)):
        longest = np.sort(cost)[::-1]
        pair = int(longest[ranks - 1] + longest[ranks]) if clients > ranks else 0
        least = max(cost.sum() / ranks, longest[0], pair)
        placement = place(cost, ranks)
        assert placement.shape == (clients,)
        assert 0 <= placement.min() <= placement.max() < ranks
        assert makespan(cost, placement, ranks) <= (4 / 3 - 1 / (3 * ranks)) * least


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_longest_first(ranks: int) -> None:
    """Oracle: Graham's own worst case, on which longest first gives 4m - 1 and the best placement is 3m."""
    cost = np.array([*(size for m in range(2 * ranks - 1, ranks, -1) for size in (m, m)), ranks, ranks, ranks])
    assert cost.sum() == 3 * ranks * ranks
    assert makespan(cost, place(cost, ranks), ranks) == 4 * ranks - 1


def test_a_pure_function() -> None:
    """Oracle: itself; the argument stays as it was, equal costs are dealt out in order."""
    cost = np.random.default_rng(0).integers(0, 5, 100)
    before = cost.copy()
    np.testing.assert_array_equal(place(cost, 7), place(cost.copy(), 7))
    np.testing.assert_array_equal(cost, before)
    assert place(np.full(7, 3), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_ends() -> None:
    """Oracle: by hand: one rank, nobody, more ranks than clients, clients without work."""
    assert place(np.array([3, 1, 2]), 1).tolist() == [0, 0, 0]
    assert place(np.empty(0, dtype=np.int64), 4).tolist() == []
    assert sorted(place(np.array([5, 5, 5]), 16).tolist()) == [0, 1, 2]
    assert makespan(np.array([0, 0, 0, 9]), place(np.array([0, 0, 0, 9]), 2), 2) == 9


def test_large_cohorts_are_placed_at_once() -> None:
    """Oracle: the clock: 10,000 clients on 16 ranks in less than 50 ms (the best of 5 times)."""
    cost = np.random.default_rng(0).integers(1, 1000, 10_000)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        place(cost, 16)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
