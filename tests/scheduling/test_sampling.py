"""Who takes part: the same on every rank, as often as promised, and counting as much as promised."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.scheduling import All, Bernoulli, Cohort, RoundRobin, Sampler, Uniform, Weighted, Weighting

CLIENTS, SIZE, ROUNDS = 30, 7, 10_000
SAMPLES = np.random.default_rng(0).integers(1, 200, CLIENTS)


def cohort(sampler: Sampler, round: int, weighting: Weighting = "samples", seed: int = 0) -> Cohort:
    return sampler.cohort(round, SIZE, SAMPLES, weighting, seed)


def cohorts(sampler: Sampler, weighting: Weighting = "samples") -> list[Cohort]:
    return [cohort(sampler, round, weighting) for round in range(1, ROUNDS + 1)]


def frequency(drawn: list[Cohort]) -> NDArray[np.float64]:
    """[clients] in what share of the rounds each took part."""
    return np.bincount(np.concatenate([one.clients for one in drawn]), minlength=CLIENTS) / len(drawn)


@pytest.mark.parametrize("make", [Uniform, Bernoulli, All, RoundRobin, Weighted])
def test_every_rank_draws_the_same(make: type[Sampler]) -> None:
    """J1. Oracle: another instance, in another order of rounds, after other uses of NumPy's generators."""
    forwards = [cohort(make(), round) for round in range(1, 20)]
    np.random.default_rng().random(3)
    other = make()
    backwards = [cohort(other, round) for round in range(19, 0, -1)][::-1]
    for one, same in zip(forwards, backwards, strict=True):
        for column in ("clients", "samples", "mass"):
            np.testing.assert_array_equal(getattr(one, column), getattr(same, column))


@pytest.mark.parametrize("make", [Uniform, Bernoulli, Weighted])
def test_rounds_and_seeds_differ(make: type[Sampler]) -> None:
    """Oracle: 7 of 30 clients give two million cohorts; 40 in a row are different."""
    drawn = [cohort(make(), round, seed=seed) for round in range(1, 21) for seed in (0, 1)]
    assert len({tuple(one.clients.tolist()) for one in drawn}) >= 39


def test_uniform() -> None:
    """J2. Oracle: 7 different clients; each in 7/30 of 10,000 rounds, each pair in 7/30 * 6/29, 4 and 5 sigma."""
    drawn = cohorts(Uniform())
    assert all(len(one) == SIZE for one in drawn)
    chance = SIZE / CLIENTS
    assert np.abs(frequency(drawn) - chance).max() < 4 * np.sqrt(chance * (1 - chance) / ROUNDS)
    present = np.zeros((ROUNDS, CLIENTS))
    for row, one in zip(present, drawn, strict=True):
        row[one.clients] = 1
    together = (present.T @ present / ROUNDS)[np.triu_indices(CLIENTS, 1)]
    chance *= (SIZE - 1) / (CLIENTS - 1)
    assert np.abs(together - chance).max() < 5 * np.sqrt(chance * (1 - chance) / ROUNDS)


def test_bernoulli() -> None:
    """J2. Oracle: the binomial distribution of the cohort's size (mean and variance within 4 sigma)."""
    drawn = cohorts(Bernoulli())
    chance = SIZE / CLIENTS
    assert np.abs(frequency(drawn) - chance).max() < 4 * np.sqrt(chance * (1 - chance) / ROUNDS)
    sizes = np.array([len(one) for one in drawn])
    variance = SIZE * (1 - chance)
    assert abs(sizes.mean() - SIZE) < 4 * np.sqrt(variance / ROUNDS)
    assert abs(sizes.var() - variance) < 4 * variance * np.sqrt(2 / ROUNDS)


def test_bernoulli_is_never_empty() -> None:
    """J4. Oracle: one of 30 expected, so 36 % of the rounds would be empty; the others keep their chances."""
    drawn = [Bernoulli().cohort(round, 1, SAMPLES, "samples", 0) for round in range(1, ROUNDS + 1)]
    assert min(len(one) for one in drawn) == 1
    chance = 1 / CLIENTS / (1 - (1 - 1 / CLIENTS) ** CLIENTS)
    assert np.abs(frequency(drawn) - chance).max() < 4 * np.sqrt(chance * (1 - chance) / ROUNDS)


def test_all() -> None:
    """Oracle: everyone, whatever size is asked for, counting their samples."""
    everyone = cohort(All(), 5)
    assert everyone.clients.tolist() == list(range(CLIENTS))
    np.testing.assert_array_equal(everyone.weights, SAMPLES / SAMPLES.sum())


def test_round_robin() -> None:
    """Oracle: a list of all clients over and over; 30 rounds of 7 are everyone 7 times, 5 rounds everyone once."""
    sampler = RoundRobin()
    turns = [cohort(sampler, round).clients for round in range(1, CLIENTS + 1)]
    assert [set(turn) for turn in turns] == [
        {(round * SIZE + place) % CLIENTS for place in range(SIZE)} for round in range(CLIENTS)
    ]
    assert all(len(turn) == SIZE for turn in turns)
    assert np.bincount(np.concatenate(turns)).tolist() == [SIZE] * CLIENTS
    assert set(np.concatenate(turns[:5])) == set(range(CLIENTS))


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_weighted_is_unbiased(weighting: Weighting) -> None:
    """J3. Oracle: the mean over all clients weighted by samples, by Monte Carlo within 4 sigma."""
    values = np.random.default_rng(1).standard_normal(CLIENTS) + SAMPLES / 50
    target = values @ SAMPLES / SAMPLES.sum()
    aggregates = np.array([values[one.clients] @ one.weights for one in cohorts(Weighted(), weighting)])
    sigma = aggregates.std() / np.sqrt(ROUNDS)
    assert abs(aggregates.mean() - target) < 4 * sigma
    plain = np.array([values[one.clients] @ one.weights for one in cohorts(Uniform(), "uniform")])
    assert abs(plain.mean() - target) > 20 * sigma, "uniform sampling and a plain mean have another expectation"


def test_weighted_counts_twice_who_is_drawn_twice() -> None:
    """Oracle: 7 draws count 7 in all, whoever they are; clients without samples are never drawn."""
    samples = np.array([0, 5, 1000, 3, 0, 2, 7, 1])
    drawn = [Weighted().cohort(round, SIZE, samples, "samples", 0) for round in range(1, 500)]
    assert all(one.total_mass == SIZE for one in drawn)
    assert all((one.mass >= 1).all() for one in drawn)
    assert np.mean([one.mass[one.clients == 2].sum() for one in drawn]) == pytest.approx(7 * 1000 / 1018, rel=0.01)
    assert not {0, 4} & set(np.concatenate([one.clients for one in drawn]))


class Fixed(Sampler):
    """Whoever is named."""

    def __init__(self, *clients: int) -> None:
        self.clients = clients

    def draw(self, round: int, size: int, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        return np.array(self.clients, dtype=np.int64)


def test_what_a_cohort_counts() -> None:
    """Oracle: by hand; clients in rising order, and one without samples never counts."""
    samples = np.array([10, 0, 30, 60])
    by_samples = Fixed(3, 0, 1).cohort(1, 3, samples, "samples", 0)
    assert by_samples.clients.tolist() == [0, 1, 3]
    assert by_samples.samples.tolist() == [10, 0, 60]
    assert by_samples.mass.tolist() == [10, 0, 60]
    assert by_samples.weights.tolist() == [1 / 7, 0, 6 / 7]
    uniform = Fixed(3, 0, 1, 3).cohort(1, 3, samples, "uniform", 0)
    assert uniform.mass.tolist() == [1, 0, 2]
    assert uniform.weights.tolist() == [1 / 3, 0, 2 / 3]
    assert Fixed(2, 2, 0).cohort(1, 3, samples, "samples", 0).mass.tolist() == [10, 60]


def test_nobody_and_some() -> None:
    """Oracle: by hand."""
    for nobody in (Cohort.nobody(), Fixed().cohort(1, 1, SAMPLES, "samples", 0)):
        assert len(nobody) == nobody.total_mass == len(nobody.weights) == 0
    some = Cohort(np.array([2, 5, 9]), np.array([20, 50, 90]), np.array([1, 2, 3])).subset(np.array([0, 2]))
    assert (some.clients.tolist(), some.samples.tolist(), some.mass.tolist()) == ([2, 9], [20, 90], [1, 3])
    assert some.weights.tolist() == [0.25, 0.75]
    without = Fixed(1).cohort(1, 1, np.array([5, 0]), "samples", 0)
    assert without.weights.tolist() == [0.0]
