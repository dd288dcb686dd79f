"""Attacks: what malicious clients send or train on, beside NumPy, and who they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.robust import Median
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.data import Arrays, Dataset, Progress
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.uplink import Uplink
from fedmpi.models import LeNet
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Uniform
from fedmpi.policies.attacks import (
    ALIE,
    IPM,
    Attack,
    Gaussian,
    Hidden,
    LabelFlip,
    MinMax,
    MinSum,
    NoAttack,
    SignFlip,
    most_hidden,
)
from fedmpi.policies.compression import Compression, Dense
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder
from tests.support.digits import SHAPE, Few
from tests.support.experiments import SEED, Alone, Spy, block, run

CLIENTS = 7
PARAMETERS = Layout.of(LeNet().build(SHAPE, 10)).parameters
SETTINGS: dict[str, Any] = {
    "dataset": Few(30 * CLIENTS),
    "partition": InOrder(),
    "model": LeNet(),
    "clients": CLIENTS,
    "local": LocalTraining(epochs=1, lr=0.05),
    "weighting": "uniform",
}


def malicious(attack: Attack, clients: int = CLIENTS) -> list[int]:
    return np.flatnonzero(attack.malicious(clients, SEED)).tolist()


@pytest.mark.parametrize(
    ("clients", "share", "count"), [(50, 0.2, 10), (10, 0.25, 2), (7, 0.5, 4), (3, 0, 0), (3, 1, 3)]
)
def test_how_many_are_malicious(clients: int, share: float, count: int) -> None:
    """Oracle: Python's rounding; another seed makes others malicious."""
    attack = SignFlip(share)
    assert attack.malicious(clients, SEED).sum() == count
    np.testing.assert_array_equal(attack.malicious(clients, SEED), Gaussian(share).malicious(clients, SEED))
    others = [tuple(attack.malicious(clients, seed)) for seed in range(20)]
    assert (len(set(others)) > 1) == (0 < count < clients)


def test_an_attack_without_attackers(tmp_path: Path) -> None:
    """Oracle: the line; Python rounds halves to even."""
    reason = "because it is rounded to whole clients, and there are 5"
    with pytest.raises(BadInput, match=rf"^--attack\.share = 0\.1: must be 0, or above 0\.1, {reason}$"):
        parse(["--attack", "SignFlip", "--attack.share", "0.1", "--clients", "5"])
    for share in ("0.11", "0", "1"):
        parse(["--attack", "SignFlip", "--attack.share", share, "--clients", "5"])


def sent(spy: Spy, round: int, attack: Attack) -> tuple[NDArray, NDArray, list[int]]:
    """Of a round: what the clients received, what they trained [clients, P], and who is malicious."""
    trained = np.array([spy.trained[round][client] for client in sorted(spy.trained[round])])
    return spy.measured[round - 1][0].double().numpy(), trained, malicious(attack)


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_sign_flip(vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: NumPy's mean of what they should send; their running statistics are not touched."""
    spy, attack = Spy(monkeypatch), SignFlip(0.4, scale=2.0)
    local = LocalTraining(epochs=1, lr=0.05, vectorize=vectorize)
    made = run(tmp_path / "made.h5", attack=attack, rounds=2, **{**SETTINGS, "local": local})
    for round in (1, 2):
        start, vectors, bad = sent(spy, round, attack)
        assert len(bad) == 3
        vectors[bad, :PARAMETERS] = (start - 2 * (vectors[bad] - start))[:, :PARAMETERS]
        np.testing.assert_allclose(spy.measured[round][0].numpy(), vectors.mean(0), rtol=1e-6, atol=1e-7)
    for client, flag in zip(made.clients["client"], made.clients["malicious"], strict=True):
        assert flag == (client in bad)


def test_gaussian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what is left of the mean without the honest models: the start, and noise, new each round."""
    spy, attack, noises = Spy(monkeypatch), Gaussian(2 / 7, std=0.5), []
    run(tmp_path / "made.h5", attack=attack, rounds=2, **SETTINGS)
    for round in (1, 2):
        start, vectors, bad = sent(spy, round, attack)
        vectors[bad, :PARAMETERS] = start[:PARAMETERS]
        noises.append(7 / 2 * (spy.measured[round][0].double().numpy() - vectors.mean(0)))
        assert noises[-1][:PARAMETERS].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.03)
        assert abs(noises[-1][:PARAMETERS].mean()) < 4 * 0.5 / np.sqrt(2 * PARAMETERS)
        np.testing.assert_allclose(noises[-1][PARAMETERS:], 0, atol=1e-5)
    assert abs(np.corrcoef(noises)[0, 1]) < 4 / np.sqrt(PARAMETERS)


def test_gaussian_noise_is_a_clients_own() -> None:
    """Oracle: the same client's noise beside others; other clients', rounds' and kinds of vectors' differ."""
    adversary = Adversary(Alone(), Gaussian(1.0), CLIENTS, SEED)
    change, everyone = torch.zeros(CLIENTS, 100), np.arange(CLIENTS)
    noise = adversary.change(change, everyone, 1, 0)
    assert torch.equal(adversary.change(change[:2], everyone[[5, 2]], 1, 0), noise[[5, 2]])
    others = [noise, adversary.change(change, everyone, 2, 0), adversary.change(change, everyone, 1, 1)]
    assert len(torch.unique(torch.cat(others), dim=0)) == 3 * CLIENTS


class Flipped(Few):
    """Digits with labels flipped for the samples of some clients, of thirty each."""

    def __init__(self, of: list[int]) -> None:
        super().__init__(30 * CLIENTS)
        self.of = of

    def read(self, progress: Progress) -> Arrays:
        arrays = super().read(progress)
        labels = arrays.train_y.copy()
        for client in self.of:
            labels[30 * client : 30 * client + 30] = 9 - labels[30 * client : 30 * client + 30]
        return Arrays(arrays.train_x, labels, arrays.test_x, arrays.test_y)


def test_label_flip(tmp_path: Path) -> None:
    """Oracle: a data set in which the malicious clients' training labels, and no others, are flipped: bit for bit."""
    attack = LabelFlip(0.4)
    made = run(tmp_path / "made.h5", attack=attack, **SETTINGS)
    flipped: Dataset = Flipped(malicious(attack))
    oracle = run(tmp_path / "oracle.h5", **{**SETTINGS, "dataset": flipped})
    plain = run(tmp_path / "plain.h5", **SETTINGS)
    assert made.weights_sha256 == oracle.weights_sha256 != plain.weights_sha256
    assert made.rounds["test_loss"] == oracle.rounds["test_loss"]
    np.testing.assert_array_equal(made.partition["label_counts"], plain.partition["label_counts"])
    assert np.flatnonzero(made.clients["loss"] != plain.clients["loss"]).tolist() == malicious(attack)


@pytest.mark.parametrize("algorithm", [FedAvg(), Median()])
def test_alie(algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: NumPy's mean - z * std over the malicious clients' changes, in the mean, or the median, of all."""
    spy, attack = Spy(monkeypatch), ALIE(0.4, z=1.5)
    run(tmp_path / "made.h5", algorithm, attack=attack, rounds=2, **SETTINGS)
    for round in (1, 2):
        start, vectors, bad = sent(spy, round, attack)
        changes = (vectors[bad] - start)[:, :PARAMETERS]
        vectors[bad, :PARAMETERS] = start[:PARAMETERS] + changes.mean(0) - 1.5 * changes.std(0)
        expected = vectors.mean(0) if type(algorithm) is FedAvg else np.median(vectors, axis=0)
        np.testing.assert_allclose(spy.measured[round][0].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_ipm(vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: NumPy: the negated mean of the malicious clients' changes, times epsilon, in the mean of all."""
    spy, attack = Spy(monkeypatch), IPM(0.4, epsilon=0.5)
    local = LocalTraining(epochs=1, lr=0.05, vectorize=vectorize)
    run(tmp_path / "made.h5", attack=attack, rounds=2, **{**SETTINGS, "local": local})
    for round in (1, 2):
        start, vectors, bad = sent(spy, round, attack)
        vectors[bad, :PARAMETERS] = (start - 0.5 * (vectors[bad] - start).mean(0))[:PARAMETERS]
        np.testing.assert_allclose(spy.measured[round][0].numpy(), vectors.mean(0), rtol=1e-6, atol=1e-7)


def agreed(attack: Hidden, changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[d], what clients with these changes [b, d] send, who are all malicious."""
    everyone = np.arange(len(changes))
    adversary = Adversary(Alone(), attack, len(changes), SEED)
    mine = {client: changes[client].astype(np.float32) for client in everyone.tolist()}
    return adversary.agree(mine, changes.shape[1], everyone).double().numpy()


def allowed(attack: Hidden, changes: NDArray[np.float64], vector: NDArray[np.float64]) -> float:
    """How much of what the attack may do a vector does; 1 is all. By loops over the clients."""
    apart = np.array([[np.square(one - other).sum() for other in changes] for one in changes])
    to_vector = np.array([np.square(vector - one).sum() for one in changes])
    if isinstance(attack, MinMax):
        return float(np.sqrt(to_vector.max() / apart.max()))
    return float(np.sqrt(to_vector.sum() / apart.sum(1).max()))


@pytest.mark.parametrize(("attack", "expected"), [(MinMax(1.0), -1), (MinSum(1.0), -1), (MinMax(1.0, "sign"), 0)])
def test_two_changes_by_hand(attack: Hidden, expected: float) -> None:
    """Oracle: by hand: changes of 1 and -1 have mean 0, deviation 1, and a distance of 2; the mean has no sign."""
    np.testing.assert_allclose(agreed(attack, np.array([[1.0, 7], [-1, 7]]))[0], expected, atol=1e-6)


@pytest.mark.parametrize("perturbation", ["std", "sign", "unit"])
@pytest.mark.parametrize("make", [MinMax, MinSum])
@pytest.mark.parametrize("size", [4, 70_000])
def test_as_far_as_allowed(make: type[MinMax] | type[MinSum], perturbation: Any, size: int) -> None:
    """Oracle: the direction in NumPy, and the bound by loops: it is met, and a step further breaks it."""
    attack = make(1.0, perturbation)
    changes = np.random.default_rng(3).normal(0.3, np.linspace(0.5, 2, size), (5, size)).astype(np.float32)
    wide = changes.astype(np.float64)
    vector, mean = agreed(attack, wide), wide.mean(0)
    direction = {"std": -wide.std(0), "sign": -np.sign(mean), "unit": -mean}[perturbation]
    moved = vector - mean
    cosine = moved @ direction / np.linalg.norm(moved) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1, abs=1e-6)
    assert allowed(attack, wide, vector) == pytest.approx(1, abs=1e-5)
    assert allowed(attack, wide, mean + 1.01 * moved) > 1 + 1e-5
    assert allowed(attack, wide, mean) < 1


@pytest.mark.parametrize("attack", [MinMax(1.0), MinSum(1.0, "unit"), MinMax(1.0, "sign")])
def test_alone_or_alike(attack: Hidden) -> None:
    """Oracle: the honest change, of one client, or of several that have the same."""
    change = np.array([[0.5, -2.0, 3.0]])
    for count in (1, 3):
        np.testing.assert_allclose(agreed(attack, np.repeat(change, count, 0)), change[0], rtol=1e-6)


@pytest.mark.parametrize("attack", [MinMax(0.5), MinSum(0.5)])
def test_hidden_in_a_run(attack: Hidden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: `allowed`, of what all malicious clients send, which is what is left of the mean without the others."""
    spy = Spy(monkeypatch)
    run(tmp_path / "made.h5", attack=attack, rounds=2, **SETTINGS)
    for round in (1, 2):
        start, vectors, bad = sent(spy, round, attack)
        others = np.delete(vectors, bad, axis=0)
        lie = (CLIENTS * spy.measured[round][0].double().numpy() - others.sum(0)) / len(bad)
        changes = (vectors[bad] - start)[:, :PARAMETERS]
        assert allowed(attack, changes, (lie - start)[:PARAMETERS]) == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(lie[PARAMETERS:], vectors[bad].mean(0)[PARAMETERS:], rtol=1e-4, atol=1e-4)


def test_z_of_the_paper() -> None:
    """Oracle: the paper's example of 50 clients, 24 of them malicious, by SciPy: 24 of 26 are further off."""
    assert most_hidden(50, 24) == pytest.approx(norm.ppf(24 / 26))
    assert most_hidden(20, 4) == pytest.approx(norm.ppf(9 / 16))
    assert most_hidden(10, 1) == 0, "the formula's is below 0"
    assert most_hidden(10, 7) == pytest.approx(norm.ppf(2 / 3)), "a majority needs no more than one"
    assert most_hidden(3, 3) == 0


@pytest.mark.parametrize("attack", [SignFlip(0.0), LabelFlip(0.0), ALIE(1 / 7)])
def test_nobody_malicious(attack: Attack, tmp_path: Path) -> None:
    """Oracle: the run without an attack, bit for bit; also where the only malicious client is not asked."""
    bad = malicious(attack)
    settings = {**SETTINGS, "model": LogisticRegression(), "cohort": 2, "sampler": Uniform()}
    plain = run(tmp_path / "plain.h5", **settings)
    assert not set(bad) & set(plain.clients["client"])
    made = run(tmp_path / "made.h5", attack=attack, **settings)
    assert made.weights_sha256 == plain.weights_sha256
    assert (made.clients["malicious"] == 0).all()
    assert "malicious" not in plain.clients


@pytest.mark.parametrize("attack", [SignFlip(0.4), Gaussian(0.4, 0.01), ALIE(0.4, 0.5)])
def test_methods_that_send_several_vectors(attack: Attack, tmp_path: Path) -> None:
    """Oracle: SCAFFOLD without an attack, which sends as much, and does not end at the same model."""
    settings = {**SETTINGS, "model": LogisticRegression(), "rounds": 2}
    made, plain = (
        run(tmp_path / f"{type(chosen).__name__}.h5", SCAFFOLD(), attack=chosen, **settings)
        for chosen in (attack, NoAttack())
    )
    assert np.isfinite(made.weights).all()
    assert made.weights_sha256 != plain.weights_sha256
    np.testing.assert_array_equal(made.rounds["bytes_up"], plain.rounds["bytes_up"])


class Whole(Compression):
    """Whole numbers are sent, of one byte each."""

    def bytes(self, count: int) -> int:
        return count

    def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
        return change.round()


@pytest.mark.parametrize("attack", [SignFlip(0.4, 2.0), ALIE(0.4, 1.0)])
def test_an_attack_comes_before_compression(attack: Attack) -> None:
    """Oracle: by hand in NumPy, with a start for each of two groups, vectors of which the last number is a buffer."""
    start, vectors = (
        torch.from_numpy(np.random.default_rng(k).normal(size=(n, 5))) for k, n in ((0, 2), (1, CLIENTS))
    )
    group, bad = np.arange(CLIENTS) % 2, malicious(attack)
    adversary = Adversary(Alone(), attack, CLIENTS, SEED)
    uplink = Uplink(adversary, Whole(), 4, start.float(), None, np.arange(CLIENTS), SEED, 1, 0)
    arrived = [uplink.send(10 * vectors.float(), block(*range(CLIENTS)), group), *uplink.late()]
    change = (10 * vectors - start[group]).numpy()[:, :4]
    if isinstance(attack, SignFlip):
        change[bad] *= -2
    else:
        change[bad] = change[bad].mean(0) - change[bad].std(0)
    expected = np.column_stack([start[group].numpy()[:, :4] + change.round(), 10 * vectors[:, 4]])
    seen = {client: row for rows, some, _ in arrived for client, row in zip(some.clients.tolist(), rows, strict=True)}
    assert sorted(seen) == list(range(CLIENTS))
    np.testing.assert_allclose(np.array([seen[client].numpy() for client in range(CLIENTS)]), expected, rtol=1e-5)
    for rows, some, groups in arrived:
        assert len(rows) == len(some) == len(groups)
        np.testing.assert_array_equal(groups, some.clients % 2)
    assert uplink.bytes == CLIENTS * (4 + 4)


def test_honest_vectors_are_not_touched() -> None:
    """Oracle: their bits, where start + (vector - start) would have others; the clients keep what they trained."""
    attack = SignFlip(0.4)
    vectors, start = torch.rand(CLIENTS, 50), 1e3 * torch.rand(50)
    uplink = Uplink(
        Adversary(Alone(), attack, CLIENTS, SEED), Dense(), 50, start, None, np.arange(CLIENTS), SEED, 1, 0
    )
    trained = vectors.clone()
    arrived, _, _ = uplink.send(trained, block(*range(CLIENTS)), np.zeros(CLIENTS, dtype=np.int64))
    assert torch.equal(trained, vectors)
    honest = [k for k in range(CLIENTS) if k not in malicious(attack)]
    assert torch.equal(arrived[honest], vectors[honest])
    assert not torch.equal((start + (vectors - start))[honest], vectors[honest])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("SignFlip --attack.share 1.5", "--attack.share = 1.5: must be at least 0 and at most 1"),
        ("SignFlip --attack.scale 0", "--attack.scale = 0.0: must be above 0"),
        ("Gaussian --attack.std -1", "--attack.std = -1.0: must be above 0"),
        ("IPM --attack.epsilon 0", "--attack.epsilon = 0.0: must be above 0"),
        ("MinMax --attack.perturbation mean", "--attack.perturbation = mean: must be one of std, sign, unit"),
        ("ALIE --attack.z -1", "--attack.z = -1.0: must be at least 0"),
        ("ALIE --algorithm Centralized", "--attack = ALIE: Centralized has no separate clients"),
        (
            "Krum",
            "--attack = Krum: no such name; known are ALIE, Backdoor, Gaussian, IPM, LabelFlip, MinMax, MinSum,"
            " NoAttack, SignFlip",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--attack", *arguments.split()])
    assert str(error.value) == message


def test_who_is_malicious_is_recorded(tmp_path: Path) -> None:
    """Oracle: what the attack says of the clients that took part, who are some of all."""
    attack = Gaussian(0.4)
    made = run(tmp_path / "run.h5", attack=attack, clients=7, cohort=3, rounds=4, sampler=Uniform())
    recorded, everyone = made.clients["malicious"], attack.malicious(7, SEED)
    np.testing.assert_array_equal(recorded, everyone[made.clients["client"]])
    assert (recorded.reshape(4, 3) != everyone[:3]).any(), "else the first clients' would do"
