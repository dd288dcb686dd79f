"""`--weighting horvitz_thompson`: the mean change that is expected is that over all clients who can be reached.

Exactly where there are few enough outcomes to go through, and by Monte Carlo over all combinations of sampler,
availability and conditions, of which every one is either unbiased or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.centralized import Centralized
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedcluster import FedCluster
from fedmpi.algorithms.fedma import FedMA
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.experiment.assembly import assemble
from fedmpi.experiment.experiment import Experiment
from fedmpi.experiment.rounds import plan_round
from fedmpi.federation.engine import Engine
from fedmpi.federation.federation import Federation
from fedmpi.models import MLP, LogisticRegression
from fedmpi.policies import (
    All,
    Always,
    Availability,
    Bernoulli,
    Cohort,
    Conditions,
    Diurnal,
    Heterogeneous,
    Ideal,
    Independent,
    Markov,
    Pool,
    PowerOfChoice,
    RoundRobin,
    Sampler,
    Stratified,
    Trace,
    Uniform,
    Weighted,
)
from fedmpi.policies.attacks import NoAttack
from fedmpi.policies.compression import Dense
from fedmpi.policies.privacy import NoPrivacy
from fedmpi.policies.server_optimizers import Replace
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import SEED, Alone, Cut, network, read, run, state, tensors

SIZES = (40, 10, 90, 30, 60, 20, 80, 50)
CLIENTS, COHORT, ROUNDS = len(SIZES), 3, 120
#: Of each client, what it would change: 1, and something that depends on its number of samples.
VALUES = np.stack([np.ones(CLIENTS), np.array(SIZES) / 50 - np.arange(CLIENTS) / 4])
SAMPLES = np.array(SIZES)


# Exactly


class Scripted(np.random.Generator):
    """A generator of given numbers."""

    def __init__(self, *given: Any) -> None:
        super().__init__(np.random.PCG64())
        self._given = iter(given)

    def random(self, *arguments: Any, **options: Any) -> Any:
        return next(self._given)

    integers = choice = random


def draws(sampler: Sampler, size: int, pool: Pool) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Every cohort that a sampler may draw, with its probability, by the sampler's own code."""
    available = len(pool.available)
    scripts: list[tuple[float, tuple[Any, ...]]]
    if isinstance(sampler, Uniform):
        chosen = list(combinations(range(available), size))
        scripts = [(1 / len(chosen), (np.array(places),)) for places in chosen]
    elif isinstance(sampler, Bernoulli):
        share = size / available
        lots = [np.array(lot) for lot in product((0.0, 1.0), repeat=available) if 0.0 in lot]
        chances = np.array([np.prod(np.where(lot == 0, share, 1 - share)) for lot in lots])
        scripts = [(chance, (lot,)) for chance, lot in zip(chances / chances.sum(), lots, strict=True)]
    elif isinstance(sampler, Stratified):
        orders = [np.array(order) / available for order in permutations(range(available))]
        scripts = [(1 / len(orders) / available, (o, place)) for o in orders for place in range(available)]
    else:
        scripts = [(1.0, ())]
    for chance, given in scripts:
        yield chance, sampler.draw(1, size, pool, Scripted(*given))


def survivors(conditions: Heterogeneous, drawn: NDArray[np.int64]) -> Iterator[tuple[float, list[int]]]:
    """Of those drawn, whose updates may arrive, with the probability: stragglers and dropouts are left out."""
    straggling = list(combinations(drawn.tolist(), round(conditions.stragglers * len(drawn))))
    for stragglers in straggling:
        for lost in product((False, True), repeat=len(drawn)):
            chance = np.prod([conditions.dropout if gone else 1 - conditions.dropout for gone in lost])
            left = [k for k, gone in zip(drawn.tolist(), lost, strict=True) if not gone and k not in stragglers]
            yield chance / len(straggling), left


@pytest.mark.parametrize("available", [range(5), (0, 2, 3)], ids=["all", "some"])
@pytest.mark.parametrize("sampler", [Uniform(), Bernoulli(), Stratified(), All()], ids=lambda s: type(s).__name__)
def test_exactly(sampler: Sampler, available: Any) -> None:
    """Oracle: the mean of all who can be reached, over every outcome there is."""
    samples = SAMPLES[:5]
    labels = np.eye(2, dtype=np.int64)[[0, 0, 1, 1, 1]] * samples[:, None]
    pool = Pool(samples, lambda: labels, np.array(available))
    size, conditions = 2, Heterogeneous(dropout=0.3, stragglers=0.4)
    inclusion = sampler.cohort(1, size, pool, "horvitz_thompson", 0).inclusion
    assert inclusion
    values, found, chances = VALUES[1, :5], 0.0, 0.0
    for drawing, drawn in draws(sampler, size, pool):
        arrival = conditions.arrival(len(drawn), accepts_partial_work=False)
        assert arrival
        expected = inclusion.thinned(arrival).expected(samples)
        for surviving, left in survivors(conditions, drawn):
            chances += drawing * surviving
            found += drawing * surviving * float(samples[left] @ values[left]) / float(expected)
    assert chances == pytest.approx(1)
    assert found == pytest.approx(np.average(values[pool.available], weights=samples[pool.available]), rel=1e-12)


# By Monte Carlo


class Every(Trace):
    """A trace of four rounds, over and over."""

    def __init__(self) -> None:
        self._rounds = [np.array(clients) for clients in ([0, 1, 2, 3, 4], [5], [2, 3, 6, 7], [0, 7, 3, 5, 6, 1])]

    def check(self, clients: int) -> None:
        pass


SAMPLERS = [Uniform(), Bernoulli(), Stratified(), All()]
AVAILABILITIES = [Always(), Independent(0.6), Markov(0.5, 4.0), Diurnal(0.5, 7.0), Every()]
CONDITIONS: dict[str, tuple[Conditions, Algorithm]] = {
    "ideal": (Ideal(), FedAvg()),
    "dropouts": (Heterogeneous(dropout=0.5), FedAvg()),
    "stragglers": (Heterogeneous(stragglers=0.4), FedAvg()),
    "partial work": (Heterogeneous(stragglers=0.4, dropout=0.3), FedProx()),
    "both": (Heterogeneous(stragglers=0.3, dropout=0.3), FedAvg()),
}


def experiment(path: Path, **settings: Any) -> Experiment:
    components: dict[str, Any] = {"dataset": Digits(), "partition": Cut(*SIZES), "model": LogisticRegression()}
    components |= {
        "server_optimizer": Replace(),
        "privacy": NoPrivacy(),
        "compression": Dense(),
        "attack": NoAttack(),
    }
    components |= {"sampler": Uniform(), "availability": Always(), "conditions": Ideal(), "device": "cpu"}
    numbers = {"clients": CLIENTS, "cohort": COHORT, "local": LocalTraining(epochs=5), "seed": SEED, "device": "cpu"}
    chosen = {"algorithm": FedAvg(), **components, **numbers, "weighting": "horvitz_thompson", **settings}
    if isinstance(chosen["sampler"], All):
        del chosen["cohort"]
    return Experiment(output=path, **chosen)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The clients, of whom nobody is ever trained."""
    one = experiment(tmp_path_factory.mktemp("fed") / "never.h5")
    one.load()
    return assemble(one, Alone()).engine


@pytest.mark.parametrize("conditions", CONDITIONS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_by_monte_carlo(sampler: Sampler, conditions: str, engine: Engine, tmp_path: Path) -> None:
    """Oracle: the mean over those who can be reached, for values 1 and others; by the errors' own spread, 4.5 sigma.

    A mean over those who came, divided by what they count, is off by far more: 0.5 with dropouts of a half.
    """
    how, method = CONDITIONS[conditions]
    for availability in AVAILABILITIES:
        settings: dict[str, Any] = {"sampler": sampler, "availability": availability, "conditions": how}
        one = experiment(tmp_path / "never.h5", algorithm=method, **settings)
        errors = []
        for round in range(1, ROUNDS + 1):
            engine.begin(round)
            cohort = plan_round(one, engine, method, round).cohort
            present = np.flatnonzero(availability.present(round, CLIENTS, SEED))
            if len(present):
                found = VALUES[:, cohort.clients] @ cohort.mass / (cohort.expected_mass or 0)
                errors.append(found - np.average(VALUES[:, present], axis=1, weights=SAMPLES[present]))
        off, spread = np.mean(errors, 0), np.std(errors, axis=0) / np.sqrt(len(errors))
        name = type(availability).__name__
        assert (spread < 0.15).all(), name
        assert (np.abs(off) <= 4.5 * spread + 1e-12).all(), (name, off, spread)


# What is refused

UNEQUAL = {
    "over_select": Heterogeneous(over_select=1.5),
    "deadline": Heterogeneous(deadline=3.0),
    "both and dropouts": Heterogeneous(over_select=1.5, deadline=3.0, dropout=0.1),
}


def message(path: Path, **settings: Any) -> str:
    """What is said before anything is trained; nothing if all is well."""
    try:
        run(path, rounds=1, weighting="horvitz_thompson", overwrite=True, **settings)
    except BadInput as error:
        return str(error)
    return ""


def test_what_is_refused(tmp_path: Path) -> None:
    """Oracle: the message, of every combination in which the chance is not known, or not the same for all."""
    path, begin = tmp_path / "never.h5", "weighting = horvitz_thompson: cannot be combined with"
    for sampler, availability, conditions in product(SAMPLERS, AVAILABILITIES, UNEQUAL.values()):
        found = message(path, sampler=sampler, availability=availability, conditions=conditions)
        assert found == (f"{begin} Heterogeneous if the probability that an update is used depends on speed")
    for unknown in (Weighted(), RoundRobin(), PowerOfChoice()):
        for availability in AVAILABILITIES:
            assert message(path, sampler=unknown, availability=availability) == (
                f"{begin} {type(unknown).__name__}, because the probability that a client is drawn is not known"
            )
    assert message(path, algorithm=Centralized()) == (
        "weighting = horvitz_thompson: Centralized does not form one mean of all its clients' models"
    )
    assert not path.exists()


NOBODY = (
    "weighting = horvitz_thompson: cannot be combined with Heterogeneous if a round of {} clients may use no update"
)


@pytest.mark.parametrize(
    ("conditions", "sampler", "availability", "method", "fewest"),
    [
        (Heterogeneous(dropout=1.0), Uniform(), Always(), FedAvg, 3),
        (Heterogeneous(stragglers=0.9), Uniform(), Always(), FedAvg, 3),
        (Heterogeneous(stragglers=0.8), Bernoulli(), Always(), FedAvg, 1),
        (Heterogeneous(stragglers=0.8), Uniform(), Independent(), FedAvg, 1),
        (Heterogeneous(stragglers=0.8), Uniform(), Always(), FedAvg, 0),
        (Heterogeneous(stragglers=0.8), Bernoulli(), Independent(), FedProx, 0),
        (Heterogeneous(stragglers=0.5, dropout=0.9), Bernoulli(), Diurnal(), FedAvg, 0),
    ],
)
def test_whether_anybody_is_left(
    conditions: Heterogeneous,
    sampler: Sampler,
    availability: Availability,
    method: type[Algorithm],
    fewest: int,
    tmp_path: Path,
) -> None:
    """Oracle: by hand: of 3, 0.9 are 3 stragglers, 0.8 are 2; of one alone 0.8 are one, and 0.5 none."""
    settings: dict[str, Any] = {"clients": 4, "cohort": 3, "local": LocalTraining(epochs=2)}
    settings |= {"conditions": conditions, "sampler": sampler, "availability": availability}
    found = message(tmp_path / "run.h5", algorithm=method(), **settings)
    assert found == (NOBODY.format(fewest) if fewest else "")


# In runs

REACHED = np.array([0, 2, 3, 5, 6])


class Reached(Trace):
    """The same clients in every round."""

    def __init__(self) -> None:
        self._rounds = [REACHED]

    def check(self, clients: int) -> None:
        pass


@pytest.fixture
def settings() -> dict[str, Any]:
    partition, local = Cut(*SIZES), LocalTraining(epochs=2, batch_size=20, lr=0.05)
    conditions = Heterogeneous(dropout=0.4, stragglers=0.3)
    common = {"clients": CLIENTS, "cohort": 4, "partition": partition, "local": local, "evaluate_every": 0}
    return {**common, "sampler": Uniform(), "availability": Reached(), "conditions": conditions, "model": MLP((9,))}


def moved(made: Any) -> dict[str, NDArray[np.float64]]:
    """How far each tensor of the model went."""
    start = state(network(MLP((9,)), (1, 8, 8), 10, SEED))
    return {name: (tensor - start[name]).double().numpy() for name, tensor in tensors(made).items()}


@pytest.mark.parametrize("method", [FedAvg, FedProx], ids=lambda method: method.__name__)
def test_a_step(method: type[Algorithm], settings: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: by hand; of 4 of 5 reached clients, one straggles, and each is lost with probability 0.4.

    FedProx uses what stragglers do, FedAvg does not. The rest is a mean of those who came, which goes so far from the
    start as their share of the samples that are expected.
    """
    shares = run(tmp_path / "shares.h5", method(), **settings)
    made = run(tmp_path / "made.h5", method(), weighting="horvitz_thompson", **settings)
    came = shares.clients["samples"].sum()
    chance = 4 / 5 * 0.6 * (1 if method is FedProx else 3 / 4)
    factor = came / (chance * SAMPLES[REACHED].sum())
    assert 0 < len(shares.clients["client"]) < 4
    assert abs(factor - 1) > 0.05
    usual = moved(shares)
    for name, change in moved(made).items():
        np.testing.assert_allclose(change, factor * usual[name], rtol=1e-4, atol=1e-6)


def test_the_last_layer_of_matched_averaging(settings: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: by hand; a class goes as far as the cohort's samples of it are of those that are expected."""
    shares = run(tmp_path / "shares.h5", FedMA(retrain=False), **settings)
    made = run(tmp_path / "made.h5", FedMA(retrain=False), weighting="horvitz_thompson", **settings)
    labels = np.stack(
        [
            np.bincount(read(Digits()).train_y[part], minlength=10)
            for part in Cut(*SIZES).split(np.empty(0, np.int64), CLIENTS, np.random.default_rng())
        ]
    )
    chance, came = 4 / 5 * 0.6 * 3 / 4, shares.clients["client"]
    factors = labels[came].sum(0) / (chance * labels[REACHED].sum(0))
    assert np.ptp(factors) > 0.05
    usual, found = moved(shares), moved(made)
    hidden = SAMPLES[came].sum() / (chance * SAMPLES[REACHED].sum())
    for name, change in found.items():
        is_last = change.shape[0] == 10
        factor = factors.reshape(-1, *[1] * (change.ndim - 1)) if is_last else hidden
        np.testing.assert_allclose(change, factor * usual[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_cluster_expects_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: by hand; one cycle goes as far as its members' samples are of those expected in the cluster.

    With conditions under which everybody comes; who cannot be reached has no part in what is expected.
    """
    expected: list[tuple[list[int], float | None]] = []

    class Expecting(FedCluster):
        def cycle(self, fed: Federation, part: Cohort) -> None:
            expected.append((part.clients.tolist(), part.expected_mass))
            super().cycle(fed, part)

    method = Expecting(2)
    run(tmp_path / "made.h5", method, **{**settings, "conditions": Ideal()}, weighting="horvitz_thompson", rounds=3)
    assert len(expected) >= 4
    for clients, mass in expected:
        members = REACHED[method.cluster[REACHED] == method.cluster[clients[0]]]
        assert mass == pytest.approx(4 / 5 * SAMPLES[members].sum())
