"""Who takes part: the same on every rank, as often as promised, and counting as much as promised."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.experiment.experiment import Experiment
from fedmpi.models import LeNet
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import (
    All,
    Bernoulli,
    Cohort,
    FixedList,
    Pool,
    PowerOfChoice,
    RoundRobin,
    Sampler,
    Stratified,
    Uniform,
    Weighted,
    Weighting,
)
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import SEED, Cut, network, normalised, read, run, state, tensors

CLIENTS, SIZE, ROUNDS = 30, 7, 10_000
SAMPLES = np.random.default_rng(0).integers(1, 200, CLIENTS)
STRATA = np.repeat([0, 1, 2], [4, 11, 15])


def pool(samples: NDArray[np.int64] = SAMPLES, available: NDArray[np.int64] | None = None) -> Pool:
    """Clients of which all are available unless some are named; each has one label, that of its stratum."""
    labels = np.eye(3, dtype=np.int64)[STRATA[: len(samples)]] * samples[:, None]
    return Pool(samples, lambda: labels, available)


def cohort(sampler: Sampler, round: int, weighting: Weighting = "samples", seed: int = 0) -> Cohort:
    return sampler.cohort(round, SIZE, pool(), weighting, seed)


@cache
def cohorts(make: type[Sampler], weighting: Weighting = "samples") -> list[Cohort]:
    sampler = make()
    return [cohort(sampler, round, weighting) for round in range(1, ROUNDS + 1)]


def frequency(drawn: list[Cohort]) -> NDArray[np.float64]:
    """[clients] in what share of the rounds each took part."""
    return np.bincount(np.concatenate([one.clients for one in drawn]), minlength=CLIENTS) / len(drawn)


@pytest.mark.parametrize("make", [Uniform, Bernoulli, All, RoundRobin, Weighted, Stratified, PowerOfChoice])
def test_every_rank_draws_the_same(make: type[Sampler]) -> None:
    """Oracle: another instance, in another order of rounds, after other uses of NumPy's generators."""
    forwards = [cohort(make(), round) for round in range(1, 20)]
    np.random.default_rng().random(3)
    other = make()
    backwards = [cohort(other, round) for round in range(19, 0, -1)][::-1]
    for one, same in zip(forwards, backwards, strict=True):
        for column in ("clients", "samples", "mass"):
            np.testing.assert_array_equal(getattr(one, column), getattr(same, column))


@pytest.mark.parametrize("make", [Uniform, Bernoulli, Weighted, Stratified, PowerOfChoice])
def test_rounds_and_seeds_differ(make: type[Sampler]) -> None:
    """Oracle: 7 of 30 clients give two million cohorts; 40 in a row are different."""
    drawn = [cohort(make(), round, seed=seed) for round in range(1, 21) for seed in (0, 1)]
    assert len({tuple(one.clients.tolist()) for one in drawn}) >= 39


def test_uniform() -> None:
    """Oracle: 7 different clients; each in 7/30 of 10,000 rounds, each pair in 7/30 * 6/29, 4 and 5 sigma."""
    drawn = cohorts(Uniform)
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
    """Oracle: the binomial distribution of the cohort's size (mean and variance within 4 sigma)."""
    drawn = cohorts(Bernoulli)
    chance = SIZE / CLIENTS
    assert np.abs(frequency(drawn) - chance).max() < 4 * np.sqrt(chance * (1 - chance) / ROUNDS)
    sizes = np.array([len(one) for one in drawn])
    variance = SIZE * (1 - chance)
    assert abs(sizes.mean() - SIZE) < 4 * np.sqrt(variance / ROUNDS)
    assert abs(sizes.var() - variance) < 4 * variance * np.sqrt(2 / ROUNDS)


def test_bernoulli_is_never_empty() -> None:
    """Oracle: one of 30 expected, so 36 % of the rounds would be empty; the others keep their chances."""
    drawn = [Bernoulli().cohort(round, 1, pool(), "samples", 0) for round in range(1, ROUNDS + 1)]
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
    """Oracle: the mean over all clients weighted by samples, by Monte Carlo within 4 sigma."""
    values = np.random.default_rng(1).standard_normal(CLIENTS) + SAMPLES / 50
    target = values @ SAMPLES / SAMPLES.sum()
    aggregates = np.array([values[one.clients] @ one.weights for one in cohorts(Weighted, weighting)])
    sigma = aggregates.std() / np.sqrt(ROUNDS)
    assert abs(aggregates.mean() - target) < 4 * sigma
    plain = np.array([values[one.clients].mean() for one in cohorts(Uniform)])
    assert abs(plain.mean() - target) > 20 * sigma, "uniform sampling and a plain mean have another expectation"


def test_weighted_counts_twice_who_is_drawn_twice() -> None:
    """Oracle: 7 draws count 7 in all, whoever they are; clients without samples are never drawn."""
    samples = np.array([0, 5, 1000, 3, 0, 2, 7, 1])
    drawn = [Weighted().cohort(round, SIZE, pool(samples), "samples", 0) for round in range(1, 500)]
    assert all(one.total_mass == SIZE for one in drawn)
    assert all((one.mass >= 1).all() for one in drawn)
    assert np.mean([one.mass[one.clients == 2].sum() for one in drawn]) == pytest.approx(7 * 1000 / 1018, rel=0.01)
    assert not {0, 4} & set(np.concatenate([one.clients for one in drawn]))


class Fixed(Sampler):
    """Whoever is named."""

    def __init__(self, *clients: int) -> None:
        self.clients = clients

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.array(self.clients, dtype=np.int64)


class Free(Sampler):
    """Whatever is given."""

    def __init__(self, drawn: Any) -> None:
        self.given = drawn

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return self.given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array([1, 4, -1]), "drew client -1 in round 3: must be 0 to 9"),
        (np.array([1, 10, 4]), "drew client 10 in round 3: must be 0 to 9"),
        ([10**9], "drew client 1000000000 in round 3: must be 0 to 9"),
        (np.array([4, 5, 8]), "drew client 5 in round 3: must be a client that can be reached in this round"),
        (np.array([1.0, 4.0]), r"draw\(\) returned float64 of shape \(2,\): must return a list of clients' numbers"),
        (np.arange(10) > 4, r"draw\(\) returned bool of shape \(10,\): must return a list of clients' numbers"),
        (np.array([[1, 4]]), r"draw\(\) returned int64 of shape \(1, 2\): must return a list of clients' numbers"),
        (None, r"draw\(\) returned object of shape \(\): must return a list of clients' numbers"),
    ],
)
def test_what_a_sampler_may_not_draw(given: Any, said: str) -> None:
    """Oracle: the lines. Clients 1, 4 and 8 can be reached; without this, 5 is right, too."""
    some = pool(SAMPLES[:10], SOME[SOME < 10][[0, 1, 3]])
    with pytest.raises(BadInput, match=rf"^--sampler = \S*test_sampling\.Free: {said}$"):
        Free(given).cohort(3, 3, some, "samples", 0)
    everyone = pool(SAMPLES[:10])
    if "can be reached" in said:
        assert Free(given).cohort(3, 3, everyone, "samples", 0).clients.tolist() == [4, 5, 8]
    else:
        with pytest.raises(BadInput, match=said):
            Free(given).cohort(3, 3, everyone, "samples", 0)
    assert Free([8, 1, 8]).cohort(3, 3, some, "uniform", 0).mass.tolist() == [1, 2]
    assert len(Free(np.array([])).cohort(3, 3, some, "uniform", 0)) == 0


def test_what_a_cohort_counts() -> None:
    """Oracle: by hand; clients in rising order, and one without samples never counts."""
    samples = np.array([10, 0, 30, 60])
    by_samples = Fixed(3, 0, 1).cohort(1, 3, pool(samples), "samples", 0)
    assert by_samples.clients.tolist() == [0, 1, 3]
    assert by_samples.samples.tolist() == [10, 0, 60]
    assert by_samples.mass.tolist() == [10, 0, 60]
    assert by_samples.weights.tolist() == [1 / 7, 0, 6 / 7]
    uniform = Fixed(3, 0, 1, 3).cohort(1, 3, pool(samples), "uniform", 0)
    assert uniform.mass.tolist() == [1, 0, 2]
    assert uniform.weights.tolist() == [1 / 3, 0, 2 / 3]
    assert Fixed(2, 2, 0).cohort(1, 3, pool(samples), "samples", 0).mass.tolist() == [10, 60]


def test_nobody_and_some() -> None:
    """Oracle: by hand."""
    for nobody in (Cohort.nobody(), Fixed().cohort(1, 1, pool(), "samples", 0)):
        assert len(nobody) == nobody.total_mass == len(nobody.weights) == 0
    some = Cohort(np.array([2, 5, 9]), np.array([20, 50, 90]), np.array([1, 2, 3])).subset(np.array([0, 2]))
    assert (some.clients.tolist(), some.samples.tolist(), some.mass.tolist()) == ([2, 9], [20, 90], [1, 3])
    assert some.weights.tolist() == [0.25, 0.75]
    without = Fixed(1).cohort(1, 1, pool(np.array([5, 0])), "samples", 0)
    assert without.weights.tolist() == [0.0]


def test_stratified() -> None:
    """Oracle: each client in 7/30 of 10,000 rounds, 4 sigma; strata of 4, 11 and 15 of 30 in shares of 7."""
    drawn = cohorts(Stratified)
    assert all(len(one) == SIZE for one in drawn)
    chance = SIZE / CLIENTS
    assert np.abs(frequency(drawn) - chance).max() < 4 * np.sqrt(chance * (1 - chance) / ROUNDS)
    for stratum, count in enumerate((4, 11, 15)):
        of_it = {int((STRATA[one.clients] == stratum).sum()) for one in drawn}
        assert of_it == {SIZE * count // CLIENTS, SIZE * count // CLIENTS + 1}
    whole = Stratified().cohort(1, CLIENTS, pool(), "samples", 0)
    assert whole.clients.tolist() == list(range(CLIENTS))


@pytest.mark.parametrize("make", [Uniform, Bernoulli, Stratified])
def test_horvitz_thompson_is_unbiased(make: type[Sampler]) -> None:
    """Oracle: the mean over all clients weighted by samples, by Monte Carlo within 4 sigma; shares of it are not.

    Values and samples are correlated, so that the mean over those drawn, weighted by samples, is biased.
    """
    size, values = 2, (SAMPLES > 100) + np.random.default_rng(1).standard_normal(CLIENTS) / 10
    target = values @ SAMPLES / SAMPLES.sum()
    drawn = [make().cohort(round, size, pool(), "horvitz_thompson", 0) for round in range(1, ROUNDS + 1)]
    sums = np.array([values[one.clients] @ one.mass / (one.expected_mass or 0) for one in drawn])
    assert abs(sums.mean() - target) < 4 * sums.std() / np.sqrt(ROUNDS)
    shares = np.array([values[one.clients] @ one.weights for one in drawn])
    assert abs(shares.mean() - target) > 4 * shares.std() / np.sqrt(ROUNDS)


class Same(Uniform):
    """Always the same clients."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return pool.at(np.arange(size))


class SameSaid(Same):
    """Says with which chance."""

    def chance(self, size: int, of: int) -> float | None:
        return 0.5


def test_another_draw_has_another_chance() -> None:
    """Oracle: the chance is that of the base, and not that of the first clients; what a class says itself holds."""
    assert [kind().chance(2, 8) for kind in (Uniform, Same, SameSaid)] == [0.25, None, 0.5]
    with pytest.raises(BadInput, match="because the probability that a client is drawn is not known"):
        Experiment(sampler=Same(), weighting="horvitz_thompson")


def test_horvitz_thompson_of_all_is_the_whole_mean() -> None:
    """Oracle: the sum of all samples is expected, and there."""
    one = cohort(All(), 1, "horvitz_thompson")
    assert one.expected_mass == one.total_mass == SAMPLES.sum()
    assert cohort(All(), 1).expected_mass is None


SOME = np.array([1, 4, 5, 8, 13, 20, 21, 22, 29])


@pytest.mark.parametrize("make", [Uniform, Bernoulli, All, RoundRobin, Weighted, Stratified, PowerOfChoice])
def test_only_those_available_are_drawn(make: type[Sampler]) -> None:
    """Oracle: the list of them; with fewer than the cohort, all of them, and with nobody, nobody."""
    drawn = [make().cohort(round, SIZE, pool(SAMPLES, SOME), "samples", 0) for round in range(1, 200)]
    assert set(np.concatenate([one.clients for one in drawn])) == set(SOME)
    assert max(len(one) for one in drawn) <= len(SOME)
    few = make().cohort(1, SIZE, pool(SAMPLES, SOME[:3]), "samples", 0)
    if make is not Weighted:  # which may draw one twice
        assert few.clients.tolist() == SOME[:3].tolist()
    assert set(few.clients) <= set(SOME[:3])
    assert len(make().cohort(1, SIZE, pool(SAMPLES, SOME[:0]), "samples", 0)) == 0
    nothing = make().cohort(1, SIZE, pool(np.zeros(CLIENTS, np.int64), SOME), "samples", 0)
    assert nothing.total_mass == 0


def test_round_robin_passes_over_who_is_away() -> None:
    """Oracle: by hand; turns of 7 begin at 0, 7, 14, 21, 28 and then at 35 - 30 = 5."""
    turns = [RoundRobin().cohort(round, SIZE, pool(SAMPLES, SOME), "samples", 0).clients for round in (1, 2, 4, 5, 6)]
    first = [1, 8, 21, 29, 5]
    for begin, turn in zip(first, turns, strict=True):
        place = SOME.tolist().index(begin)
        assert set(turn) == set(np.roll(SOME, -place)[:SIZE])


def test_candidates_are_drawn_by_samples() -> None:
    """Oracle: one candidate is drawn in proportion to the samples, 4 sigma; of several, none twice."""
    drawn = [PowerOfChoice(1).cohort(round, 1, pool(), "samples", 0) for round in range(1, ROUNDS + 1)]
    chance = SAMPLES / SAMPLES.sum()
    assert (np.abs(frequency(drawn) - chance) < 4 * np.sqrt(chance * (1 - chance) / ROUNDS)).all()
    for candidates, expected in ((None, 2 * SIZE), (10, 10), (CLIENTS, CLIENTS)):
        one = cohort(PowerOfChoice(candidates), 1)
        assert len(one) == one.total_mass == expected


def test_power_of_choice_takes_the_worst() -> None:
    """Oracle: by hand; of equals the first, and one whose loss is unknown last."""
    drawn = Fixed(0, 1, 2, 3, 4, 5).cohort(1, 6, pool(), "uniform", 0)
    losses = np.array([0.5, 2.0, np.nan, 0.7, 2.0, 0.7])
    asked = PowerOfChoice().choose(drawn, 3, lambda: losses)
    assert asked.clients.tolist() == [1, 3, 4]
    assert asked.samples.tolist() == SAMPLES[[1, 3, 4]].tolist()
    assert PowerOfChoice().choose(drawn, 5, lambda: losses).clients.tolist() == [0, 1, 3, 4, 5]

    def unwanted() -> NDArray[np.float64]:
        raise AssertionError("nobody else looks at losses")

    assert Uniform().choose(drawn, 3, unwanted) is drawn


def test_fixed_list(tmp_path: Path) -> None:
    """Oracle: the file; a client named twice counts twice, and one that is away does not come."""
    file = tmp_path / "clients.txt"
    file.write_text("# the clients of a round\n3 1 1\n\n7 29 # the last\n")
    sampler = FixedList(file)
    sampler.check(CLIENTS, SIZE)
    rounds = [sampler.cohort(round, SIZE, pool(), "uniform", 0) for round in range(1, 6)]
    assert [one.clients.tolist() for one in rounds] == [[1, 3], [], [7, 29], [1, 3], []]
    assert rounds[0].mass.tolist() == [2, 1]
    assert sampler.cohort(1, SIZE, pool(SAMPLES, SOME), "uniform", 0).clients.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a file with one line per round"),
        ("# nobody\n", "must be a file with one line per round"),
        ("1 2\n3 -4\n", r"must be numbers of clients, not -4 \(round 2\)"),
        ("1 9999999999999999999", "must be numbers of clients, not 9999999999999999999"),
        ("1 30", "must be numbers of clients below 30, not 30"),
        (b"\xff\xfe", "is not a text file"),
        (None, "No such file"),
    ],
)
def test_lists_that_cannot_be(text: str | bytes | None, problem: str, tmp_path: Path) -> None:
    """Oracle: the message."""
    file = tmp_path / "clients.txt"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadInput, match=problem):
        FixedList(file).check(CLIENTS, SIZE)


SIZES = (40, 20, 80, 30, 60, 50)


def test_the_worst_clients_are_trained(tmp_path: Path) -> None:
    """Oracle: PyTorch's cross entropy of the model before the round, on each client's own samples.

    All candidates received the model to measure it, those who train have it already.
    """
    settings: dict[str, Any] = {"clients": 6, "cohort": 2, "partition": Cut(*SIZES), "local": LocalTraining(epochs=1)}
    sampler = PowerOfChoice(6)
    made = [run(tmp_path / f"{r}.h5", sampler=sampler, rounds=r, weighting="samples", **settings) for r in (1, 2)]
    arrays = read(Digits())
    parts = Cut(*SIZES).split(arrays.train_y, 6, np.random.default_rng())
    module = network(LogisticRegression(), (1, 8, 8), 10)
    for round in (1, 2):
        losses = [
            torch.nn.functional.cross_entropy(
                module(normalised(arrays.train_x[part], Digits())), torch.from_numpy(arrays.train_y[part])
            ).item()
            for part in parts
        ]
        trained = made[1].clients["client"][made[1].clients["round"] == round]
        assert trained.tolist() == sorted(np.argsort(losses)[-2:].tolist())
        module.load_state_dict(tensors(made[0]))
    model = 4 * 650
    assert made[1].rounds["bytes_down"].tolist() == [6 * model] * 2
    assert made[1].rounds["bytes_up"].tolist() == [2 * model] * 2


def test_horvitz_thompson_in_a_run(tmp_path: Path) -> None:
    """Oracle: parameters go sum n_k / (n m / N) times as far as with shares of those drawn; statistics as far."""
    settings: dict[str, Any] = {"clients": 6, "cohort": 3, "partition": Cut(*SIZES), "local": LocalTraining(epochs=1)}
    settings |= {"sampler": Uniform(), "model": LeNet(), "evaluate_every": 0}
    shares = run(tmp_path / "shares.h5", **settings)
    made = run(tmp_path / "ht.h5", weighting="horvitz_thompson", **settings)
    np.testing.assert_array_equal(made.clients["client"], shares.clients["client"])
    factor = shares.clients["samples"].sum() / (sum(SIZES) * 3 / 6)
    assert abs(factor - 1) > 0.1
    module = network(LeNet(), (1, 8, 8), 10, SEED)
    trained = {name for name, _ in module.named_parameters()}
    for name, start in state(module).items():
        usual, found = tensors(shares)[name], tensors(made)[name]
        expected = start + factor * (usual - start) if name in trained else usual
        np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
