"""Means: exact, independent of order and grouping, and an error where a client has diverged."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.errors import Diverged
from fedmpi.federation.mean import WeightedMean, diverged
from fedmpi.federation.uplink import Uplink
from fedmpi.mpi.world import World
from fedmpi.policies.compression import Dense
from fedmpi.training.block import Block
from tests.jobs import means
from tests.jobs.means import CANCELLING, COUNT, PARAMETERS, SIZE
from tests.support.experiments import CPU, Alone, block
from tests.support.mpi import REPOSITORY, mpirun, succeed

PROGRAM = REPOSITORY / "tests" / "jobs" / "means.py"


@pytest.fixture(scope="module")
def world() -> World:
    return Alone()


@pytest.fixture(scope="module")
def reference(world: World) -> Tensor:
    return means.mean_of(world, list(range(COUNT)))


def weighted(world: World, size: int, total: int, groups: int | None = None, buffers: int = 0) -> WeightedMean:
    return WeightedMean(world, size - buffers, size, total, groups, CPU)


def exact(values: Tensor, masses: list[int]) -> NDArray[np.float64]:
    """The mean by `math.fsum`; a float32 times a mass below 2^29 is exact in float64."""
    terms = values.double().numpy() * np.array(masses)[:, None]
    return np.array([math.fsum(column) for column in terms.T]) / sum(masses)


def assert_near(mean: Tensor, oracle: NDArray[np.float64], terms: int, unit: float) -> None:
    """Every term is rounded by half a unit at most, and the result to the nearest float32."""
    rounded = np.spacing(np.abs(oracle).astype(np.float32)).astype(np.float64) / 2
    assert (np.abs(mean.double().numpy() - oracle) <= terms * unit / 2 + rounded * 1.0001).all()


# Exactness


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_any_order_gives_the_same_bits(world: World, reference: Tensor, at_once: int) -> None:
    """Oracle: the mean in order of the clients' numbers, added one by one."""
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(COUNT).tolist()
        assert torch.equal(means.mean_of(world, order, at_once), reference)


def test_plain_sums_depend_on_the_order() -> None:
    """That the tests here could fail: the same 64 vectors, summed plainly, in float32 and in float64."""
    shares = torch.tensor(means.masses(), dtype=torch.float64) / sum(means.masses())
    terms = means.vectors().double() * shares[:, None]
    for dtype in (torch.float32, torch.float64):
        forwards, backwards = torch.zeros(2, SIZE, dtype=dtype)
        for first, last in zip(terms.to(dtype), terms.to(dtype).flip(0), strict=True):
            forwards += first
            backwards += last
        assert (forwards != backwards).double().mean() > 0.5
        assert (forwards.float() != backwards.float())[:CANCELLING].double().mean() > 0.01


def test_any_grouping_over_ranks_gives_the_same_bits(reference: Tensor, tmp_path: Path) -> None:
    """Oracle: this process's mean; 4 ranks add the vectors in ten groupings, and only the server can read them.

    In five of them, on two or four nodes. There a rank that does not lead its node has everything, or each rank some;
    and nodes are in a tree, or in a chain with memory for three of a hundred blocks.
    """
    succeed(mpirun(4, "-m", "mpi4py", PROGRAM, tmp_path))
    server, *others = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(4)]
    groupings = [name for name, value in server.items() if value.dtype == np.float32]
    assert len(groupings) == 10
    for name in groupings:
        np.testing.assert_array_equal(server[name], reference.numpy(), err_msg=name)
        assert server[f"{name} device"] == "cpu"
        for other in others:
            assert name not in other
            assert other[f"{name} device"] == "meta"
            assert other[f"{name} shape"].tolist() == [SIZE]
    for other in others:
        assert other["arithmetic"].tolist() == [SIZE]
        assert "meta" in str(other["reading"])


def test_the_mean_is_right(reference: Tensor) -> None:
    """Oracle: math.fsum, to 64 halves of a unit: 2^-38 for parameters, 2^-22 for buffers of about 1e5."""
    values, masses = means.vectors(), means.masses()
    some = torch.cat([torch.arange(1000), torch.arange(PARAMETERS - 500, PARAMETERS)])
    assert_near(reference[some], exact(values[:, some], masses), COUNT, 2.0**-43)
    some = torch.arange(PARAMETERS, PARAMETERS + 1000)
    assert_near(reference[some], exact(values[:, some], masses), COUNT, 2.0**-27)
    assert reference[some].abs().median() > 1000


def test_small_values_keep_their_unit(world: World) -> None:
    """Oracle: math.fsum; where float32 is finer than the unit: parameters of 1e-9, buffers of 1e-7."""
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((10, 1000), dtype=np.float32)) * 1e-9
    values[:, 500:] *= 100
    mean = weighted(world, 1000, 10, buffers=500)
    mean.add(values, block(*range(10)))
    result = mean.reduce()
    assert_near(result, exact(values, [1] * 10), 10, 2.0**-43)


def test_sums_reach_the_limits(world: World) -> None:
    """Oracle: math.fsum, with parameters just below 2^8 and buffers just below 2^24, all of one sign."""
    values = torch.cat([torch.full((7, 50), 255.99), torch.full((7, 50), 1.67e7)], 1)
    values -= torch.from_numpy(np.random.default_rng(0).random((7, 100), dtype=np.float32))
    masses = [1, 2, 3, 500, 7, 11, 13]
    mean = weighted(world, 100, sum(masses), buffers=50)
    mean.add(values, Block(np.arange(7), np.array(masses), np.array(masses)))
    result = mean.reduce()
    assert_near(result[:50], exact(values[:, :50], masses), 7, 2.0**-43)
    assert_near(result[50:], exact(values[:, 50:], masses), 7, 2.0**-27)


def test_large_values_do_not_swallow_small_ones(world: World) -> None:
    """Oracle: math.fsum, in all 24 orders of 4 clients: two near the limits, which cancel, and two small."""
    values = torch.from_numpy(np.random.default_rng(0).random((4, 1000), dtype=np.float32)) * 1e-8
    values[:, 500:] *= 1e4
    values[:2] = torch.tensor([[1.0], [-1.0]]) * torch.tensor([255.0, 1.67e7]).repeat_interleave(500)
    oracle = exact(values, [100] * 4)
    results = []
    for order in permutations(range(4)):
        mean = weighted(world, 1000, 400, buffers=500)
        mean.add(values[list(order)], block(*order, mass=100))
        result = mean.reduce()
        assert_near(result[:500], oracle[:500], 2, 2.0**-43)
        assert_near(result[500:], oracle[500:], 2, 2.0**-43)
        results.append(result)
    assert all(torch.equal(result, results[0]) for result in results)


def test_sole_client_passes_through(world: World) -> None:
    """Oracle: the vector itself, bit for bit, from the smallest to the largest values."""
    rng = np.random.default_rng(0)
    vector = torch.from_numpy(
        (rng.standard_normal(100_001) * 10.0 ** rng.uniform(-42, 1, 100_001)).astype(np.float32)
    )
    vector[-3:] = torch.tensor([255.999, 1e-45, 4e6])
    for mass in (1, 719):
        mean = weighted(world, len(vector), mass, buffers=1)
        mean.add(vector[None], block(5, mass=mass))
        assert torch.equal(mean.reduce().view(torch.int32), vector.view(torch.int32))


@pytest.mark.parametrize("total", [7, 8])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_a_client_is_added_again(world: World, total: int, scale: float) -> None:
    """Oracle: math.fsum, to float32's digits, whether the client is the whole cohort or another one is lost."""
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 300), dtype=np.float32))
    values[:, ::7] *= scale
    mean = weighted(world, 300, total, buffers=50)
    for row in values:
        mean.add(row[None], block(5, mass=7))
    oracle = exact(values, [7, 7, 7])
    limits = np.abs(values.double().numpy()).max(0) * 2.0**-23 + 2.0**-28
    assert (np.abs(mean.reduce().double().numpy() - oracle) <= limits).all()
    assert mean.mass == 21


def test_a_client_is_added_to_several_groups(world: World) -> None:
    """Oracle: by hand: the first mean has its vector bit for bit, the second that of two vectors."""
    values, first = torch.full((3, 4), 0.1), np.array([0])
    mean = weighted(world, 4, 7, groups=2)
    for vector, group in zip(
        values * torch.tensor([[1.0], [2.0], [4.0]]), (first, first + 1, first + 1), strict=True
    ):
        mean.add(vector[None], block(5, mass=7), group)
    result = mean.reduce()
    assert torch.equal(result[0], values[0])
    torch.testing.assert_close(result[1], values[0] * 3)


# Who counts


def test_clients_without_mass_do_not_count(world: World) -> None:
    """Oracle: the other client's vector, bit for bit; what does not count need not be finite."""
    values = torch.tensor([[1.1, 2.2, 3.3], [torch.nan] * 3])
    mean = weighted(world, 3, 7)
    mean.add(values, Block(np.array([4, 5]), np.array([7, 0]), np.array([7, 0])))
    assert torch.equal(mean.reduce(), values[0])


def test_nobody_at_all(world: World) -> None:
    """Oracle: `empty`, bit for bit; zeros by default."""
    before = torch.randn(5)
    assert torch.equal(weighted(world, 5, 0).reduce(empty=before), before)
    assert torch.equal(weighted(world, 5, 12).reduce(), torch.zeros(5))
    mean = weighted(world, 5, 0)
    mean.add(torch.randn(1, 5), block(0, mass=0))
    assert torch.equal(mean.reduce(empty=before), before)


def test_lost_updates_leave_the_mean_of_the_others(world: World) -> None:
    """Oracle: math.fsum over the 20 of 64 clients that were added; the total was that of all 64."""
    values, masses = means.vectors()[:20, :1000], means.masses()
    mean = weighted(world, 1000, sum(masses))
    mean.add(values, Block(np.arange(20), np.ones(20, int), np.array(masses[:20])))
    scale = sum(masses) / sum(masses[:20])
    assert scale > 2
    assert_near(mean.reduce(), exact(values, masses[:20]), 20, 2.0**-43 * scale)


def test_groups(world: World) -> None:
    """Oracle: a mean of its own for every group (up to the unit, for the total is another)."""
    values, masses = means.vectors()[:9, :1000], means.masses()[:9]
    choice, before = np.array([0, 2, 2, 0, 2, 0, 0, 2, 2]), torch.randn(3, 1000)
    mean = weighted(world, 1000, sum(masses), groups=3)
    for some, their_choice in ((slice(0, 4), choice[:4]), (slice(4, 9), torch.from_numpy(choice[4:]))):
        mean.add(values[some], Block(np.arange(9)[some], np.ones(9, int)[some], np.array(masses)[some]), their_choice)
    result = mean.reduce(empty=before)
    assert result.shape == (3, 1000)
    assert torch.equal(result[1], before[1]), "nobody chose it"
    for group in (0, 2):
        own = [mass for mass, chosen in zip(masses, choice, strict=True) if chosen == group]
        scale = sum(masses) / sum(own)
        assert_near(result[group], exact(values[torch.from_numpy(choice == group)], own), 9, 2.0**-43 * scale)


def test_one_group_is_no_group(world: World) -> None:
    """Oracle: the mean without groups, bit for bit."""
    values, masses = means.vectors()[:9, :1000], np.array(means.masses()[:9])
    grouped, plain = weighted(world, 1000, masses.sum(), groups=1), weighted(world, 1000, masses.sum())
    for mean in (grouped, plain):
        mean.add(values, Block(np.arange(9), masses, masses))
    assert grouped.reduce().shape == (1, 1000)
    assert torch.equal(grouped.reduce()[0], plain.reduce())


def test_what_comes_through_a_channel(world: World) -> None:
    """Oracle: 4 bytes for each of 10 elements of 3 clients, and the mean that is formed without a uplink."""
    uplink = Uplink(None, Dense(), 7, torch.ones(2, 10), None, np.arange(3), 3, 1, 0)
    sent, plain = (WeightedMean(world, 7, 10, 3, 2, CPU, uplink=way) for way in (uplink, None))
    for mean in (sent, plain):
        mean.add(torch.rand(2, 10, generator=torch.Generator().manual_seed(0)), block(0, 1), np.array([0, 1]))
        mean.add(torch.zeros(1, 10), block(2), np.array([1]))
    assert uplink.bytes == 3 * 10 * 4
    assert torch.equal(sent.reduce(), plain.reduce())


# Large numbers


def spread(rng: np.random.Generator, count: int, size: int) -> Tensor:
    """[count, size] of all magnitudes from 1 to the largest float32, of either sign."""
    exponents = rng.uniform(0, 128, (count, size))
    signs = rng.choice([-1.0, 1.0], (count, size))
    return torch.from_numpy((signs * 2.0**exponents).clip(-3.4e38, 3.4e38).astype(np.float32))


def test_any_finite_number_can_be_averaged(world: World) -> None:
    """Oracle: math.fsum, to 2^-24 of the largest term; and the same bits in any order and in blocks of any size.

    One client counts nine tenths, so that its terms come near the limits of their classes.
    """
    rng = np.random.default_rng(0)
    values, masses = spread(rng, 12, 400), [*rng.integers(1, 50, 11).tolist(), 2000]
    values[:, ::2] = values[:1, ::2] * torch.from_numpy(rng.uniform(0.5, 1, (12, 200)).astype(np.float32))
    values[0, -1] = values[1, -1] = torch.finfo(torch.float32).max
    oracle, largest = exact(values, masses), values.abs().amax(0).double().numpy()
    results = []
    for at_once in (1, 5, 12):
        order = rng.permutation(12)
        mean = weighted(world, 400, sum(masses), buffers=100)
        for first in range(0, 12, at_once):
            some = order[first : first + at_once]
            mean.add(values[some], Block(some, np.ones(len(some), int), np.array(masses)[some]))
        results.append(mean.reduce())
    assert all(torch.equal(result, results[0]) for result in results)
    assert (np.abs(results[0].double().numpy() - oracle) <= largest * 2.0**-24 + np.abs(oracle) * 2.0**-24).all()
    assert results[0].isfinite().all()


def test_sums_of_large_numbers_are_exact(world: World) -> None:
    """Oracle: the mean in another order, where large numbers cancel; sums in float64 would not be the same."""
    rng = np.random.default_rng(0)
    values, masses = spread(rng, 6, 2000), torch.tensor([7, 7, 3, 5, 11, 13])
    values[1] = -values[0]
    values[2:] = values[0] * torch.from_numpy(rng.uniform(-1e-9, 1e-9, (4, 2000)).astype(np.float32))
    results, sums = [], []
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 3, 4, 1, 5]):
        mean = weighted(world, 2000, 46, buffers=500)
        mean.add(values[order], Block(np.array(order), np.ones(6, int), masses[order].numpy()))
        results.append(mean.reduce())
        terms = (values[k].double() * (masses[k] / 46) for k in order)
        sums.append(sum(terms, torch.zeros(2000, dtype=torch.float64)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert (sums[0].float() != sums[1].float()).double().mean() > 0.1


def test_large_numbers_leave_the_others_their_bits(world: World) -> None:
    """Oracle: the mean of vectors that have zeros in their places, in whichever tile the large ones lie.

    The others nearly cancel in part, and are nearly too large as well.
    """
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 300_000), dtype=np.float32))
    values[1:, ::5] *= 1e-3
    values[0, ::5] = torch.where(torch.arange(60_000) < 59_800, 250.0, 4e6)
    values[1, ::5] -= values[0, ::5]
    large = values.clone()
    large[1, [0, 131_071, 131_072, 299_000, 299_999]] = torch.tensor([256.0, -3e38, 1e20, 2.0**22, 5e30])
    found = []
    for vectors in (values, large):
        mean = weighted(world, 300_000, 3, buffers=1000)
        mean.add(vectors, block(0, 1, 2))
        found.append(mean.reduce())
    moved = (found[0] != found[1]).nonzero()[:, 0].tolist()
    assert moved == [0, 131_071, 131_072, 299_000, 299_999]
    np.testing.assert_allclose(found[1][moved], exact(large[:, moved], [1] * 3), rtol=1e-6)


def test_large_numbers_in_groups(world: World) -> None:
    """Oracle: math.fsum of each group, of which only one has large numbers; a mean used again has none left.

    Neither if there are none, nor if there are others.
    """
    values = torch.rand(4, 10)
    values[[0, 2], 3] = torch.tensor([1e30, 3e30])
    mean = weighted(world, 10, 4, groups=2)
    mean.add(values, block(*range(4)), np.array([0, 1, 0, 1]))
    result = mean.reduce()
    assert result[0, 3].item() == pytest.approx(2e30, rel=1e-6)
    torch.testing.assert_close(result[1], values[[1, 3]].mean(0))
    world.begin_round()
    mean = weighted(world, 10, 4, groups=2)
    mean.add(torch.ones(2, 10), block(0, 1), np.array([0, 1]))
    assert torch.equal(mean.reduce(), torch.ones(2, 10))
    world.begin_round()
    mean = weighted(world, 10, 4, groups=2)
    mean.add(torch.full((2, 10), 2.0**99), block(0, 1), np.array([0, 0]))
    assert torch.equal(mean.reduce()[0], torch.full((10,), 2.0**99))


@pytest.mark.parametrize("value", [256.0, -300.0, 3e38, -3.4e38, 1e-45])
def test_a_sole_client_passes_through_whatever_its_size(world: World, value: float) -> None:
    vector = torch.full((1, 6), value)
    mean = weighted(world, 6, 7, buffers=2)
    mean.add(vector, block(3, mass=7))
    assert torch.equal(mean.reduce(), vector[0])


# Divergence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [2, 250_000, 300_001])
def test_diverged(world: World, value: float, place: int) -> None:
    """Oracle: the message names the client, the tensor, the value and what to do; of parameters and buffers alike.

    Wherever in the vector, which is looked at piece by piece.
    """
    values = torch.zeros(3, 300_002)
    values[1, place] = value
    mean = WeightedMean(world, 300_000, 300_002, 3, None, CPU, name_at=lambda place: f"tensor {place}")
    with pytest.raises(Diverged, match=rf"^client 41 diverged: tensor {place} is {value:g}; lower --local.lr"):
        mean.add(values, block(40, 41, 42))


def test_which_are_not_finite() -> None:
    """Oracle: by hand."""
    values = torch.full((4, 5), 3e38)
    assert diverged(values) == {}
    assert diverged(values[:, :0]) == {}
    values[1, 3:], values[3, 0] = math.inf, -math.inf
    assert diverged(values) == {1: (3, math.inf), 3: (0, -math.inf)}
