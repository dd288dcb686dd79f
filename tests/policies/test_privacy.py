"""`--privacy`: FedAvg without it, what is clipped, how much noise, what it costs, and what cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.apfl import APFL
from fedmpi.algorithms.calibrated import FedLC
from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.feature_fusion import FeatureFusion
from fedmpi.algorithms.fedacg import FedACG
from fedmpi.algorithms.fedala import FedALA
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedbabu import FedBABU
from fedmpi.algorithms.fedopt import FedAdam
from fedmpi.algorithms.fedper import FedRep
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.fedrod import FedRoD
from fedmpi.algorithms.moon import MOON
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import MLP, LeNet
from fedmpi.policies import (
    All,
    Always,
    Bernoulli,
    Cohort,
    Ideal,
    Pool,
    RoundPlan,
    Sampler,
    Uniform,
    Workload,
)
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.privacy import CentralDP, clipped
from fedmpi.randomness import stream
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_payload import METHODS
from tests.support.digits import SHAPE, Few
from tests.support.experiments import CPU, SEED, Spy, network, run, shortened

SETTINGS: dict[str, Any] = {
    "model": LeNet("group"),
    "dataset": Few(200),
    "clients": 8,
    "cohort": 4,
    "rounds": 2,
    "weighting": "uniform",
    "local": LocalTraining(epochs=1),
}
UNBOUNDED = ("SCAFFOLD", "FedDyn", "FedNova", "FedMA", "Median", "IFCA", "Centralized", "LocalOnly")


def start_of(model: LeNet | MLP) -> np.ndarray:
    return FlatModel(network(model, SHAPE, 10), CPU).weights[0].double().numpy()


def test_without_bound_and_noise_it_is_fedavg(tmp_path: Path) -> None:
    """Oracle: the plain method with the same cohorts, bit for bit; with others, another divisor."""
    free = CentralDP(clip=math.inf, noise_multiplier=0)
    for algorithm in (None, FedProx(0.1)):
        name = type(algorithm).__name__
        settings = {**SETTINGS, "sampler": Uniform()}
        plain = run(tmp_path / f"{name}.h5", algorithm, **settings)
        private = run(tmp_path / f"{name}-private.h5", algorithm, privacy=free, **settings)
        assert private.weights_sha256 == plain.weights_sha256
        assert private.rounds["epsilon"].tolist() == [math.inf] * 2
        assert "epsilon" not in plain.rounds


def test_nothing_is_longer_than_allowed() -> None:
    """Oracle: NumPy's norms; short changes stay bit for bit, long ones keep their direction, alone or not."""
    changes = torch.randn(5, 1003, generator=torch.Generator().manual_seed(0))
    changes *= torch.tensor([0.001, 0.05, 1.0, 30.0, 0.0])[:, None]
    allowed = clipped(changes, 2.0)
    norms = np.linalg.norm(allowed.double().numpy(), axis=1)
    assert (norms <= 2 * (1 + 1e-6)).all()
    assert torch.equal(allowed[[0, 1, 4]], changes[[0, 1, 4]])
    np.testing.assert_allclose(norms[2:4], 2, rtol=1e-6)
    torch.testing.assert_close(torch.cosine_similarity(allowed[2:4], changes[2:4]), torch.ones(2))
    for row in range(5):
        assert torch.equal(clipped(changes[row : row + 1], 2.0)[0], allowed[row])


def test_the_mean_of_whoever_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the trained models by hand: each change cut to its length, their sum divided by the expected four."""
    spy = Spy(monkeypatch)
    made = run(tmp_path / "run.h5", privacy=CentralDP(0.3, 0), **{**SETTINGS, "rounds": 3, "sampler": Bernoulli()})
    sizes = [len(trained) for trained in spy.trained[1:]]
    assert len(set(sizes)) > 1, "another number of clients than expected"
    weights = start_of(LeNet("group"))
    for trained in spy.trained[1:]:
        changes = [model - weights for model in trained.values()]
        norms = [np.linalg.norm(change) for change in changes]
        assert max(norms) > 0.3
        weights = weights + sum(change * min(1, 0.3 / norm) for change, norm in zip(changes, norms, strict=True)) / 4
    layout = FlatModel(network(LeNet("group"), SHAPE, 10), CPU).layout
    expected = layout.canonical(torch.from_numpy(weights)).numpy()
    np.testing.assert_allclose(made.weights, expected, atol=2e-6)


def test_the_noise(tmp_path: Path) -> None:
    """Oracle: z C / (q N), of the changes of clients that hardly learn; anew in every round, for every seed."""
    still = LocalTraining(epochs=1, lr=1e-12)
    settings = {**SETTINGS, "model": MLP((200,)), "local": still, "sampler": Bernoulli()}
    noises = []
    for seed, rounds in ((3, 1), (3, 2), (4, 1)):
        made = run(
            tmp_path / f"{seed}-{rounds}.h5",
            privacy=CentralDP(0.5, 3.0),
            **{**settings, "rounds": rounds, "seed": seed},
        )
        model = FlatModel(network(MLP((200,)), SHAPE, 10, seed), CPU)
        noises.append(made.weights - model.layout.canonical(model.weights[0]).numpy())
    noises[1] -= noises[0]
    for noise in noises:
        assert noise.std() == pytest.approx(3.0 * 0.5 / 4, rel=0.03)
        assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(len(noise))
    correlations = np.corrcoef(noises) - np.eye(3)
    assert np.abs(correlations).max() < 0.05


@pytest.mark.parametrize("method", [m for m in METHODS if m.takes_privacy], ids=lambda method: method.__name__)
def test_methods_that_say_so_send_one_mean(method: type[Algorithm], tmp_path: Path) -> None:
    """Oracle: they are not refused, and a round costs what one mean does."""
    quick = {**SETTINGS, "model": MLP((30,)), "rounds": 1, "sampler": Uniform(), "local": LocalTraining(steps=1)}
    privacy = CentralDP(0.1, 2.0)
    made = run(tmp_path / "run.h5", shortened(method), privacy=privacy, **quick)
    assert made.rounds["epsilon"].tolist() == [privacy.epsilon(1, Uniform(), 4, 8)]


def test_attackers_are_cut_short(tmp_path: Path) -> None:
    """Oracle: no mean of changes is longer than one of them may be."""
    model = FlatModel(network(LeNet("group"), SHAPE, 10), CPU)
    everyone = {"sampler": All(), "cohort": None}
    settings = {**SETTINGS, **everyone, "rounds": 1, "attack": SignFlip(share=1.0, scale=1000.0)}
    made = run(tmp_path / "run.h5", privacy=CentralDP(0.2, 0), **settings)
    moved = made.weights.astype(float) - model.layout.canonical(model.weights[0]).double().numpy()
    assert 0.05 < np.linalg.norm(moved) <= 0.2 * (1 + 1e-4)


@pytest.mark.parametrize(
    ("noise", "accountant", "rounds", "expected", "tolerance"),
    [
        *[(z, "pld", 1, e, 1e-3) for z, e in ((0.5, 9.997), (1.0, 4.377), (2.0, 1.993), (5.0, 0.7255))],
        (10.0, "pld", 100, 4.377, 1e-3),
        (1.0, "rdp", 1, 4.56, 0.2),
    ],
)
def test_cost_of_plain_noise(noise: float, accountant: Any, rounds: int, expected: float, tolerance: float) -> None:
    """Oracle: the exact curve of the Gaussian mechanism (Balle and Wang, 2018); Renyi's bound is near."""
    privacy = CentralDP(noise_multiplier=noise, accountant=accountant)
    assert privacy.epsilon(rounds, All(), 10, 100) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("clients", "cohort", "noise", "rounds", "expected"),
    [
        (60_000, 256, 1.3, 15 * 60_000 // 256, 0.954),
        (60_000, 256, 1.1, 60 * 60_000 // 256, 2.60),
        (60_000, 256, 0.7, 45 * 60_000 // 256, 6.37),
        (100, 10, 1.0, 1000, 27.2),
    ],
)
def test_cost_of_drawn_clients(clients: int, cohort: int, noise: float, rounds: int, expected: float) -> None:
    """Oracle: published settings of DP-SGD, and one of the size of a federation, by Renyi divergences."""
    privacy = CentralDP(noise_multiplier=noise)
    assert privacy.epsilon(rounds, Bernoulli(), cohort, clients) == pytest.approx(expected, rel=0.005)


def test_cost_of_replacing_a_client() -> None:
    """Oracle: all clients in every round with noise for twice the change; a part of them costs far less."""
    privacy, of_all = CentralDP(noise_multiplier=4.0), CentralDP(noise_multiplier=2.0)
    everybody = of_all.epsilon(10, All(), 100, 100)
    assert 0 < privacy.epsilon(10, Uniform(), 10, 100) < everybody / 4
    assert privacy.epsilon(10, Uniform(), 10, 100) == pytest.approx(1.5392, abs=1e-4)
    assert privacy.epsilon(10, Uniform(), 100, 100) < everybody, "nobody is drawn: nothing is known by that"


def test_nobody_may_come() -> None:
    """Oracle: chances of 1 in 100, each by itself: of 10,000 cohorts 0.99^100 are empty, and who comes is as likely.

    So the accountant's chance is that of the draws. Drawn again, those of nobody would make it 1.58 in 100.
    """
    ones = np.ones(100, dtype=np.int64)
    pool = Pool(ones, lambda: ones[:, None], may_be_empty=True)
    drawn = [Bernoulli().cohort(round, 1, pool, "uniform", 0) for round in range(1, 10_001)]
    empty, came = 0.99**100, np.concatenate([one.clients for one in drawn])
    assert abs(np.mean([len(one) == 0 for one in drawn]) - empty) < 4 * math.sqrt(empty * (1 - empty) / 10_000)
    assert abs(len(came) / 1e6 - 0.01) < 4 * math.sqrt(0.01 * 0.99 / 1e6)
    assert CentralDP().epsilon(1000, Bernoulli(), 1, 100) == pytest.approx(2.108, abs=1e-3)
    again = 0.01 / (1 - empty)
    assert CentralDP().epsilon(1000, Bernoulli(), 1, round(1 / again)) == pytest.approx(3.35, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [FedAvg, FedProx, MOON, FedRep, Ditto, FedAdam, FeatureFusion, FedACG, FedLC, FedBABU, FedRoD, APFL, FedALA],
)
def test_a_round_of_nobody(make: type[Algorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the noise by itself, which FedAvg adds to its model; it costs as much as that of any other round."""
    spy, privacy = Spy(monkeypatch), CentralDP(0.5, 2.0)
    settings = {**SETTINGS, "model": MLP((9,)), "cohort": 1, "rounds": 6, "sampler": Bernoulli()}
    made = run(tmp_path / "run.h5", make(), privacy=privacy, **settings)
    came = np.bincount(made.clients["round"], minlength=7)[1:]
    assert 0 in came
    assert came.max() > 1
    assert made.rounds["epsilon"][-1] == privacy.epsilon(6, Bernoulli(), 1, 8)
    for round in (np.flatnonzero(came == 0) + 1).tolist():
        assert math.isnan(made.rounds["train_loss"][round - 1])
        assert made.rounds["bytes_up"][round - 1] == made.rounds["bytes_down"][round - 1] == 0
        if make is FedAvg:
            noise = stream(SEED, "privacy 0", round).standard_normal(len(made.weights), dtype=np.float32)
            change = spy.measured[round][0] - spy.measured[round - 1][0]
            np.testing.assert_allclose(change.numpy(), noise * np.float32(2.0 * 0.5), atol=1e-5)


def test_the_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the cost of so many rounds, also of those that are not measured; NaN without the library."""
    privacy = CentralDP(noise_multiplier=2.0)
    settings = {**SETTINGS, "sampler": Bernoulli(), "rounds": 5, "evaluate_every": 2}
    spent = run(tmp_path / "run.h5", privacy=privacy, **settings).rounds["epsilon"]
    assert np.isnan(spent[[0, 2]]).all()
    expected = [privacy.epsilon(rounds, Bernoulli(), 4, 8) for rounds in (2, 4, 5)]
    assert spent[[1, 3, 4]].tolist() == expected
    assert expected[0] < expected[1] < expected[2]
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    assert math.isnan(privacy.epsilon(1, All(), 4, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--privacy.clip 0", "--privacy.clip = 0.0: must be above 0"),
        ("--privacy.clip .inf", "--privacy.clip = inf: must be finite, because the noise is proportional to it"),
        ("--privacy.noise_multiplier -1", "--privacy.noise_multiplier = -1.0: must be at least 0"),
        ("--privacy.delta 1", "--privacy.delta = 1.0: must be above 0 and below 1"),
        ("--weighting samples", "--weighting = samples: must be uniform with CentralDP (add --weighting uniform)"),
        ("--compression TopK", "--compression = TopK: must be Dense with CentralDP"),
        ("--availability Independent", "--availability = Independent: must be Always with CentralDP"),
        ("--conditions Heterogeneous", "--conditions = Heterogeneous: must be Ideal with CentralDP"),
        ("--sampler RoundRobin", "--sampler = RoundRobin: must be Bernoulli or All or Uniform for accountant rdp"),
        ("--privacy.accountant pld", "--sampler = Uniform: must be Bernoulli or All for accountant pld"),
        *[
            (
                f"--algorithm {method}",
                f"--algorithm = {method.split()[0]}: must be a method whose server sees only one mean of models",
            )
            for method in (*UNBOUNDED, "GenFL --algorithm.stop_at_skew 0.5")
        ],
    ],
)
def test_what_cannot_be(options: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(["--privacy", "CentralDP", "--weighting", "uniform", *options.split()])
    assert str(error.value).startswith(message)


class Names(Sampler):
    """A sampler with the name of another, which always draws the first clients."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return pool.available[:size]


Names.__name__ = Names.__qualname__ = "Uniform"


class First(Bernoulli):
    draw = Names.draw


class Others(Uniform):
    def chance(self, size: int, of: int) -> float:
        return 1.0


class Documented(Uniform):
    """The same, explained in other words."""


class Away(Always):
    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return np.arange(clients) > round


class Late(Ideal):
    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        return RoundPlan(asked.subset(np.arange(1, len(asked))))


def test_what_only_looks_like_a_bounded_sampler(tmp_path: Path) -> None:
    """Oracle: the lines, and the epsilon of the class that is meant."""
    where = "tests.policies.test_privacy"
    for sampler, name in ((Names(), "Uniform"), (First(), "First"), (Others(), "Others")):
        with pytest.raises(
            BadInput, match=rf"sampler = {where}\.{name}: must be Bernoulli or All or Uniform for acc"
        ):
            run(tmp_path / "never.h5", privacy=CentralDP(), **{**SETTINGS, "sampler": sampler})
        with pytest.raises(BadInput, match="must be Bernoulli or All"):
            CentralDP().epsilon(3, sampler, 4, 8)
    assert CentralDP().epsilon(3, Documented(), 4, 8) == CentralDP().epsilon(3, Uniform(), 4, 8)
    for option, component in (("availability", Away()), ("conditions", Late())):
        with pytest.raises(BadInput, match=rf"{option} = {where}\.\w+: must be (Always|Ideal) with CentralDP"):
            run(tmp_path / "never.h5", privacy=CentralDP(), **{**SETTINGS, "sampler": Bernoulli(), option: component})
    assert not list(tmp_path.iterdir())


def test_running_statistics_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        run(tmp_path / "never.h5", privacy=CentralDP(), **{**SETTINGS, "model": LeNet(), "sampler": Bernoulli()})
    reason = "has running statistics, which privacy does not cover: --model.norm group"
    assert str(error.value) == f"--model = LeNet: {reason}"
