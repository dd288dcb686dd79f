"""Geometric median, centred clipping and norm bounding: NumPy with all vectors, SciPy's minimum, and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.robust_means import CentredClipping, GeometricMedian, NormBounding, RobustMean
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_robust import PARAMETERS, SETTINGS, Sends
from tests.support.experiments import Spy, run

CHANGES = np.random.default_rng(2).standard_normal((7, 5)) * np.array([[1], [1], [2], [1], [3], [1], [20]])


def combined(rule: RobustMean, changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[d], what the rule makes of changes [k, d]."""
    return rule.factors(changes @ changes.T) @ changes


def plain_clipping(changes: NDArray[np.float64], radius: float, steps: int) -> NDArray[np.float64]:
    centre = np.zeros(changes.shape[1])
    for _ in range(steps):
        apart = changes - centre
        factor = np.minimum(1, radius / np.linalg.norm(apart, axis=1, keepdims=True))
        centre = centre + (apart * factor).mean(0)
    return centre


# The rules


def test_smallest_sum_of_distances() -> None:
    """Oracle: SciPy's minimum; the mean is far from it."""
    found = minimize(lambda v: np.linalg.norm(CHANGES - v, axis=1).sum(), CHANGES.mean(0), tol=1e-12).x
    np.testing.assert_allclose(combined(GeometricMedian(), CHANGES), found, atol=1e-5)
    assert np.linalg.norm(CHANGES.mean(0) - found) > 1


def test_steps_of_weiszfeld() -> None:
    """Oracle: the steps by hand, from the mean; of one dimension the median, and the point where most are."""
    v = CHANGES.mean(0)
    for steps in (1, 2, 3):
        weights = 1 / np.maximum(np.linalg.norm(CHANGES - v, axis=1), 2.5)
        v = weights @ CHANGES / weights.sum()
        np.testing.assert_allclose(combined(GeometricMedian(2.5, steps), CHANGES), v, rtol=1e-10)
    line = np.array([[0.0], [1], [10], [2], [-7]])
    np.testing.assert_allclose(combined(GeometricMedian(), line), [1], atol=1e-4)
    most = np.array([[3.0, 4], [3, 4], [3, 4], [100, 0], [0, -50]])
    np.testing.assert_allclose(combined(GeometricMedian(), most), [3, 4], atol=1e-4)


@pytest.mark.parametrize("far", [1e3, 1e12, 1e30])
def test_a_minority_however_far(far: float) -> None:
    """Oracle: within the range of the five others, whatever two of seven are."""
    changes = CHANGES.copy()
    changes[[1, 6]] = far
    found = combined(GeometricMedian(), changes)
    others = np.delete(changes, [1, 6], axis=0)
    assert (found >= others.min(0) - 1e-6).all()
    assert (found <= others.max(0) + 1e-6).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("radius", [0.5, 2.0, 1e9])
def test_clipping(radius: float, steps: int) -> None:
    """Oracle: NumPy with all vectors; one step is norm bounding; without clipping it is the mean."""
    expected = plain_clipping(CHANGES, radius, steps)
    np.testing.assert_allclose(combined(CentredClipping(radius, steps), CHANGES), expected, rtol=1e-9)
    if steps == 1:
        np.testing.assert_allclose(combined(NormBounding(radius), CHANGES), expected, rtol=1e-9)
        assert np.linalg.norm(expected) <= radius
    if radius == 1e9:
        np.testing.assert_allclose(expected, CHANGES.mean(0))


# Runs


@pytest.mark.parametrize("algorithm", [GeometricMedian(0.1, 4), CentredClipping(0.4, 2), NormBounding(0.4)])
@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_a_run(algorithm: RobustMean, server_lr: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the rule in NumPy on the trained models' changes; running statistics have the same weights."""
    spy = Spy(monkeypatch)
    run(tmp_path / "run.h5", algorithm, rounds=2, server_optimizer=Momentum(server_lr, 0.0), **SETTINGS)
    for round in (1, 2):
        start = spy.measured[round - 1][0].double().numpy()
        trained = np.stack([spy.trained[round][client] for client in range(7)])
        changes = (trained - start)[:, :PARAMETERS]
        if isinstance(algorithm, GeometricMedian):
            change = changes.mean(0)
            for _ in range(4):
                weights = 1 / np.maximum(np.linalg.norm(changes - change, axis=1), 0.1)
                change = weights @ changes / weights.sum()
        else:
            change = plain_clipping(changes, 0.4, 2 if isinstance(algorithm, CentredClipping) else 1)
            lengths = np.linalg.norm(changes, axis=1)
            assert round > 1 or lengths.min() < 0.4 < lengths.max()
        model = spy.measured[round][0].double().numpy()
        np.testing.assert_allclose(model[:PARAMETERS] - start[:PARAMETERS], server_lr * change, atol=2e-6)
        factors = algorithm.factors(changes @ changes.T)
        statistics = factors / factors.sum() @ trained[:, PARAMETERS:]
        np.testing.assert_allclose(model[PARAMETERS:], statistics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", [CentredClipping(1e6), NormBounding(1e6), GeometricMedian(1e6)])
def test_without_clipping_it_is_fedavg(algorithm: Algorithm, tmp_path: Path) -> None:
    """Oracle: FedAvg of clients that count alike, bit for bit and byte for byte."""
    made = run(tmp_path / "made.h5", algorithm, rounds=2, **SETTINGS)
    plain = run(tmp_path / "plain.h5", rounds=2, weighting="uniform", **SETTINGS)
    assert made.weights_sha256 == plain.weights_sha256
    for column in ("bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])


@pytest.mark.parametrize("algorithm", [GeometricMedian(), CentredClipping(), NormBounding()])
def test_models_of_malicious_clients_that_are_huge(algorithm: Algorithm, tmp_path: Path) -> None:
    """Oracle: two of seven send 1e6, which would carry the mean away; the model stays, and learns."""
    made = run(tmp_path / "made.h5", algorithm, attack=Sends(2 / 7, 1e6), rounds=2, **SETTINGS)
    assert (np.abs(made.weights[:PARAMETERS]) < 10).all()
    if isinstance(algorithm, GeometricMedian):
        assert made.rounds["test_loss"][-1] < made.initial["test_loss"]


@pytest.mark.parametrize("algorithm", [GeometricMedian(), CentredClipping(), NormBounding()])
@pytest.mark.parametrize(("rejected", "moves"), [(6, True), (7, False)])
def test_rejected_vectors(algorithm: Algorithm, rejected: int, moves: bool, tmp_path: Path) -> None:
    """Oracle: by hand: they are counted, and without any other the model stays."""
    made = run(tmp_path / "made.h5", algorithm, attack=Sends(rejected / 7, np.nan), **SETTINGS)
    assert made.rounds["rejected"].tolist() == [rejected]
    assert (made.rounds["test_loss"][0] != made.initial["test_loss"]) == moves


def test_a_run_that_sign_flips_break(tmp_path: Path) -> None:
    """Oracle: a third of the clients send five times the opposite: the geometric median learns all the same."""
    local = LocalTraining(epochs=1, lr=0.02)
    made = run(tmp_path / "made.h5", GeometricMedian(), clients=9, rounds=6, attack=SignFlip(1 / 3, 5.0), local=local)
    assert made.statistics().last > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("GeometricMedian --algorithm.smoothing 0", "--algorithm.smoothing = 0.0: must be above 0"),
        ("GeometricMedian --algorithm.iterations 0", "--algorithm.iterations = 0: must be at least 1"),
        ("CentredClipping --algorithm.radius -1", "--algorithm.radius = -1.0: must be above 0"),
        ("NormBounding --algorithm.radius 0", "--algorithm.radius = 0.0: must be above 0"),
        (
            "NormBounding --weighting samples",
            "--weighting = samples: must be uniform with NormBounding, which gives all clients the same weight",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", *arguments.split()])
    assert str(error.value) == message
