"""Which rank trains whom: near the best possible, at first by steps, then by what clients have taken."""

from __future__ import annotations

import heapq
import itertools
import pickle
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.data import LogNormal
from fedmpi.federation.placement import OBSERVED, CostModel
from tests.support.mpi import REPOSITORY, mpirun, succeed


def place(cost: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """The placement of a first round, by steps."""
    return CostModel(ranks).place(cost)[0]


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


@pytest.mark.parametrize("ranks", [2, 16])
@pytest.mark.parametrize("largest", [3, 60, 10_000])
def test_dealing_several_at_a_time_loses_nothing(ranks: int, largest: int) -> None:
    """Oracle: longest first, one client after another."""
    for seed, clients in enumerate((40, 500, 5000)):
        cost = np.random.default_rng(seed).integers(1, largest, clients)
        load = [0] * ranks
        for work in sorted(cost.tolist(), reverse=True):
            heapq.heapreplace(load, load[0] + work)
        assert makespan(cost, place(cost, ranks), ranks) <= max(load) * 1.001 + 1


class Job:
    """Ranks of known speeds, whose clients take a known time.

    Args:
        speeds: [ranks]
        fixed, step: seconds of a client (of clients side by side: of a common step), and of its steps, at speed 1.
        noise: relative, of every block; every hundredth block takes ten times as long.
    """

    def __init__(self, speeds: list[float], fixed: float, step: float, noise: float = 0, at_once: int = 1) -> None:
        self.speeds, self.fixed, self.step, self.noise, self.at_once = np.array(speeds), fixed, step, noise, at_once
        self.costs = CostModel(len(speeds), at_once)
        self.rng = np.random.default_rng(1)
        self.predicted = np.zeros(len(speeds))

    def round(self, steps: NDArray[np.int64], warm_up: float = 0) -> NDArray[np.float64]:
        """[ranks] how long each takes, without noise; then the model has learnt from it, with noise."""
        placement, self.predicted = self.costs.place(steps)
        took, books = np.zeros(len(self.speeds)), np.zeros((len(self.speeds), len(OBSERVED)))
        for rank, speed in enumerate(self.speeds):
            mine = -np.sort(-steps[placement == rank])
            for first in range(0, len(mine), self.at_once):
                block = mine[first : first + self.at_once]
                seconds = self.seconds(block) / speed
                took[rank] += seconds
                if self.noise:
                    seconds *= np.exp(self.noise * self.rng.standard_normal()) * (
                        10 if self.rng.random() < 0.01 else 1
                    )
                found = self.costs.observation(rank, block, seconds + (0 if first else warm_up))
                books[rank] += [found.get(name, 0) for name in OBSERVED]
        self.costs.learn(books)
        return took

    def seconds(self, block: NDArray[np.int64]) -> float:
        return float(self.fixed * (1 if self.at_once == 1 else block.max()) + self.step * block.sum())

    def bound(self, steps: NDArray[np.int64]) -> float:
        """No placement of clients that are trained alone is shorter."""
        cost = self.fixed + self.step * steps
        return max(cost.sum() / self.speeds.sum(), cost.max() / self.speeds.max())


def log_normal_steps() -> NDArray[np.int64]:
    """[1000] the steps of the clients of the benchmarks' rung E."""
    shards = LogNormal(1.0, 10).split(np.zeros(60_000, np.int64), 1000, np.random.default_rng(0))
    return np.array([-(-len(shard) // 10) for shard in shards])


EQUAL, ONE_SLOW, ONE_FAST = [1.0] * 8, [1 / 3] + [1.0] * 7, [1.0] * 7 + [2.5]


@pytest.mark.parametrize("speeds", [EQUAL, ONE_SLOW, ONE_FAST, [1.0, 1.0], [1.0, 3.0]], ids=str)
def test_known_costs_and_speeds_are_found(speeds: list[float]) -> None:
    """Oracle: the job's own constants; its first round takes much longer, which says nothing about the next ones."""
    steps, job = log_normal_steps(), Job(speeds, fixed=3e-3, step=5e-3)
    for round in range(6):
        took = job.round(steps[round * 100 : round * 100 + 100], warm_up=0 if round else 2.0)
    mean = np.mean(speeds)
    np.testing.assert_allclose(1 / job.costs.slowness, job.speeds / mean, rtol=0.02)
    np.testing.assert_allclose(job.costs.step_cost * mean, 5e-3, rtol=0.02)
    np.testing.assert_allclose(job.costs.fixed_cost * mean, 3e-3, rtol=0.1)
    np.testing.assert_allclose(job.predicted, took, rtol=0.02)


@pytest.mark.parametrize("speeds", [[1.0, 1.0], [1 / 3, 1.0]], ids=str)
def test_costs_of_clients_side_by_side(speeds: list[float]) -> None:
    """Oracle: the job's own constants; a step costs something, however many clients take part."""
    steps, job = log_normal_steps(), Job(speeds, fixed=2e-2, step=1e-3, at_once=32)
    for round in range(8):
        took = job.round(steps[round * 100 : round * 100 + 120])
    np.testing.assert_allclose(1 / job.costs.slowness, job.speeds / job.speeds.mean(), rtol=0.05)
    np.testing.assert_allclose(job.predicted, took, rtol=0.05)
    assert job.costs.fixed_cost * job.speeds.mean() == pytest.approx(2e-2, rel=0.2)


@pytest.mark.parametrize(("ranks", "cohort"), [(2, 50), (8, 1000)])
@pytest.mark.parametrize("kind", ["equal", "one slow", "all unlike"])
def test_noisy_log_normal_clients_are_balanced_after_three_rounds(ranks: int, cohort: int, kind: str) -> None:
    """Oracle: 1.05 times the best lower bound, in the mean over ten jobs; timings vary by 10 %, some by far more."""
    speeds = {
        "equal": np.ones(ranks),
        "one slow": np.r_[1 / 3, np.ones(ranks - 1)],
        "all unlike": np.r_[1 : 3 : ranks * 1j],
    }
    steps, ratios = log_normal_steps(), []
    for seed in range(30 if cohort < 100 else 3):
        rng = np.random.default_rng(seed)
        job = Job(speeds[kind].tolist(), fixed=3e-3, step=5e-3, noise=0.1)
        job.rng = rng
        for round in range(6):
            some = steps[rng.choice(1000, cohort, replace=False)]
            took = job.round(some, warm_up=0 if round else 1.0).max()
            if round >= 3:
                ratios.append(took / job.bound(some))
    assert np.mean(ratios) <= 1.05


def test_the_fixed_cost_counts() -> None:
    """Oracle: by hand: a client of 40 steps takes as long as 5.3 of one step, when a client costs 8 and a step 1."""
    job, steps = Job([1.0, 1.0], fixed=8.0, step=1.0), np.array([40] + [1] * 20)
    assert job.round(steps).max() == 20 * 9, "by steps alone, all the others are on one rank"
    assert job.round(steps).max() == 48 + 8 * 9, "the even spread of 228 is 114"


@pytest.mark.parametrize("ranks", [2, 3])
def test_near_the_best_on_unequal_ranks(ranks: int) -> None:
    """Oracle: the bound 2 - 2/(m+1) of Gonzalez, Ibarra and Sahni (1977), against the best of all placements."""
    rng = np.random.default_rng(ranks)
    everything = np.array(list(itertools.product(range(ranks), repeat=7)))
    for _ in range(30):
        cost, costs = rng.integers(1, 30, 7), CostModel(ranks)
        costs.slowness = rng.uniform(1, 4, ranks)
        loads = np.stack([(cost * (everything == rank)).sum(1) * costs.slowness[rank] for rank in range(ranks)])
        placement, expected = costs.place(cost)
        took = np.bincount(placement, weights=cost, minlength=ranks) * costs.slowness
        np.testing.assert_allclose(expected, took)
        assert took.max() <= (2 - 2 / (ranks + 1)) * loads.max(0).min() * (1 + 1e-9)


def test_clients_stay_at_home_unless_moving_pays() -> None:
    """Oracle: by hand: two ranks, moving takes 2 seconds, a step 1; negative: nobody has anything to move."""
    costs = CostModel(2)
    costs.seconds_a_byte = 2 / 1000
    steps, all_at_1 = np.array([5, 5, 5, 5]), np.array([1, 1, 1, 1])
    assert costs.place(steps, np.array([1, 0, 0, 1]), 1000)[0].tolist() == [1, 0, 0, 1]
    placement, expected = costs.place(steps, all_at_1, 1000)
    assert placement.tolist() == [1, 1, 0, 0], "5 + 2 < 15"
    assert expected.tolist() == pytest.approx([14, 10])
    assert costs.place(np.array([5, 1]), np.array([1, 1]), 1000)[0].tolist() == [1, 0], "1 + 2 < 6"
    assert costs.place(np.array([2, 1]), np.array([1, 1]), 1000)[0].tolist() == [1, 1], "1 + 2 = 3"
    placement, expected = costs.place(np.array([9, 1, 1, 1]), np.array([0, 0, -1, -1]), 1000)
    assert placement.tolist() == [0, 1, 1, 1]
    assert expected.tolist() == pytest.approx([9, 5])
    costs.seconds_a_byte = 0.05
    assert costs.place(steps, all_at_1, 1000)[0].tolist() == [1, 1, 1, 1]


def test_a_large_cohort_stays_at_home() -> None:
    """Oracle: clients that are at home in equal parts all stay, and of a cohort all at one home half moves."""
    costs, home = CostModel(2), np.arange(1000) % 2
    costs.seconds_a_byte = 1e-9
    steps = np.full(1000, 3)
    np.testing.assert_array_equal(costs.place(steps, home, 4)[0], home)
    assert (costs.place(steps, np.zeros(1000, np.int64), 4)[0] == 0).sum() == 500


def test_moving_is_measured() -> None:
    """Oracle: 100 MB took 0.4 seconds."""
    costs = CostModel(2)
    books = np.zeros((2, len(OBSERVED)))
    for rank in range(2):
        found = {**costs.observation(rank, np.array([3]), 0.1), "moved_bytes": 5e7, "moving_seconds": 0.2}
        books[rank] = [found[name] for name in OBSERVED]
    costs.learn(books)
    assert costs.seconds_a_byte == pytest.approx(4e-9, rel=0.02)


def test_a_rank_without_work_is_tried_again() -> None:
    """Oracle: a rank that was very slow once, and therefore gets nothing, has its share again in the end."""
    job, steps = Job([1.0, 0.01], fixed=0.0, step=1e-3), np.array([2, 2, 2])
    for _ in range(4):
        job.round(steps)
    assert job.round(steps)[1] == 0
    job.speeds = np.ones(2)
    took = [job.round(steps)[1] for _ in range(60)]
    assert np.mean(np.array(took[-10:]) > 0) > 0.7


def test_a_round_without_clients_teaches_nothing() -> None:
    """Oracle: itself."""
    costs = CostModel(3)
    costs.learn(np.zeros((3, len(OBSERVED))))
    assert not costs.is_fitted
    assert np.isnan(costs.columns()["speed"]).all()
    assert costs.observation(0, np.array([0]), 1e-5) == {}


@pytest.fixture(scope="module")
def slow_rank(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, NDArray]]]:
    """What each of four ranks knows of the /ranks and /clients of each round, rank 2 being three times as slow."""
    folder = tmp_path_factory.mktemp("placements")
    succeed(mpirun(4, "-m", "mpi4py", REPOSITORY / "tests" / "jobs" / "placements.py", folder))
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(4)]


def test_all_ranks_agree(slow_rank: list[list[dict[str, NDArray]]]) -> None:
    """Oracle: rank 0, to the bit; every client is trained once."""
    for mine in slow_rank:
        for round, (one, other) in enumerate(zip(mine, slow_rank[0], strict=True)):
            for name in ("speed", "fixed_seconds", "step_seconds", "predicted_seconds", "trained_by"):
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert np.isnan(one["speed"][1:]).all() == (round == 0)
            assert one["clients"].sum() == len(one["trained_by"])


def test_a_slow_rank_is_found_and_gets_less(slow_rank: list[list[dict[str, NDArray]]]) -> None:
    """Oracle: its speed, a third of the others'; and the longest rank is much nearer to the mean than at first."""
    rounds = slow_rank[0]
    for late in rounds[-2:]:
        assert 0.22 <= late["speed"][2] / late["speed"][[1, 3]].mean() <= 0.5
        assert 0.7 <= late["client_seconds"].max() / late["predicted_seconds"].max() <= 1.4
    uneven = [late["client_seconds"].max() / late["client_seconds"][1:].mean() for late in rounds]
    assert np.mean(uneven[-3:]) < min(uneven[0], 1.25)
