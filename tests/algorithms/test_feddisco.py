"""FedDisco: weights by hand and by SciPy, runs whose means are NumPy's, and FedAvg as the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.stats import entropy

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddisco import FedDisco
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.training.settings import LocalTraining
from tests.support.digits import Few
from tests.support.experiments import Spy, run

SAMPLES, FAR = np.array([50.0, 30, 20]), np.array([0.2, 0.5, 0.3])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0.5, 0.1, [0.625, 0.1875, 0.1875]),  # .5, .15 and .15
        (0.0, 0.1, [0.6 / 1.3, 0.4 / 1.3, 0.3 / 1.3]),
        (0.7, 0.0, [1.0, 0.0, 0.0]),  # .36, -.05 and -.01
        (9.0, 0.0, [0.5, 0.3, 0.2]),  # nobody is left
    ],
)
def test_weights_by_hand(a: float, b: float, expected: list[float]) -> None:
    """Oracle: by hand, of shares .5, .3 and .2; distances that sum to 5 are divided by that."""
    np.testing.assert_allclose(FedDisco(a, b).weigh(SAMPLES, FAR), expected, rtol=1e-12)
    np.testing.assert_allclose(FedDisco(a, b).weigh(SAMPLES, 5 * FAR), expected, rtol=1e-12)
    other = FedDisco(a, b, normalise=False).weigh(SAMPLES, 5 * FAR)
    assert np.allclose(other, expected) == (a in (0.0, 9.0))


def test_who_has_no_samples() -> None:
    """Oracle: by hand: no weight, though b is added to others; without anybody nothing is divided by zero."""
    method = FedDisco()
    far = method.distances(np.array([[1, 1], [0, 0], [4, 0]], dtype=float))
    np.testing.assert_allclose(far, [0, 0, np.log(2)], atol=1e-15)
    weights = method.weigh(np.array([2.0, 0, 4]), far)
    np.testing.assert_allclose(weights, [(1 / 3 + 0.1) / 0.7, 0, (2 / 3 - 0.5 + 0.1) / 0.7], rtol=1e-12)
    assert method.weigh(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["kl", "l1", "l2", "cosine"])
def test_distances(name: Literal["kl", "l1", "l2", "cosine"]) -> None:
    """Oracle: SciPy; 0 for uniform labels; and classes in another order change nothing."""
    counts = np.array([[4, 4, 4, 4], [16, 0, 0, 0], [1, 2, 3, 0], [5, 0, 5, 1]], dtype=float)
    uniform = np.full(4, 0.25)
    oracle = {
        "kl": lambda p: entropy(p, uniform),
        "l1": lambda p: distance.cityblock(p, uniform),
        "l2": lambda p: distance.euclidean(p, uniform),
        "cosine": lambda p: distance.cosine(p, uniform),
    }[name]
    method = FedDisco(distance=name)
    found = method.distances(counts)
    np.testing.assert_allclose(found, [oracle(row / row.sum()) for row in counts], rtol=1e-9, atol=1e-12)
    assert found[0] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(method.distances(counts[:, [2, 0, 3, 1]]), found, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_a_run(vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: NumPy's mean of the cohort's trained models, weighted by hand; clients of weight 0 train and send."""
    spy, local = Spy(monkeypatch), LocalTraining(epochs=1, vectorize=vectorize)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(400), "partition": Dirichlet(0.3), "local": local}
    some: dict[str, Any] = {"sampler": Uniform(), "clients": 8, "cohort": 5, "rounds": 2}
    made = run(tmp_path / "run.h5", FedDisco(0.9, 0.05), **settings, **some)
    left_out = 0
    for round in (1, 2):
        here = made.clients["client"][made.clients["round"] == round].astype(int)
        counts = made.partition["label_counts"][here]
        shares = counts / counts.sum(1, keepdims=True)
        far = np.array([entropy(row, np.full(10, 0.1)) for row in shares])
        weights = np.maximum(counts.sum(1) / counts.sum() - 0.9 * far / far.sum() + 0.05, 0)
        left_out += (weights == 0).sum()
        trained = np.stack([spy.trained[round][client] for client in here])
        expected = weights / weights.sum() @ trained
        np.testing.assert_allclose(spy.measured[round][0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert left_out
    assert made.rounds["bytes_up"].tolist() == [5 * 4 * len(made.weights)] * 2


def test_without_distances_it_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit and byte for byte; a tiny b almost; and by default something else."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(150), "partition": Dirichlet(0.3), "rounds": 2}
    made, plain, hardly, some = (
        run(tmp_path / f"{number}.h5", one, local=LocalTraining(epochs=1, lr=0.02), **settings)
        for number, one in enumerate((FedDisco(0.0, 0.0), FedAvg(), FedDisco(0.0, 1e-12), FedDisco()))
    )
    assert made.weights_sha256 == plain.weights_sha256 != some.weights_sha256
    for column in ("train_loss", "test_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    np.testing.assert_allclose(hardly.weights, plain.weights, rtol=1e-4, atol=1e-5)
    assert np.abs(some.weights - plain.weights).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--algorithm.a -1", "--algorithm.a = -1.0: must be at least 0"),
        ("--algorithm.distance l3", "--algorithm.distance = l3: must be one of kl, l1, l2, cosine"),
        (
            "--weighting horvitz_thompson --sampler Uniform",
            "--weighting = horvitz_thompson: must be samples with FedDisco, which computes other weights from these",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", "FedDisco", *arguments.split()])
    assert str(error.value) == message
