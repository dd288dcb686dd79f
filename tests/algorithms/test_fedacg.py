"""FedACG: the paper's rule in NumPy, constant changes in closed form, and FedAvg and FedProx where they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedacg import FedACG
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import DIMENSION, HalfSquares, Regression, Slopes
from tests.support.digits import Few
from tests.support.experiments import Spy, read, run
from tests.support.least_squares import START, cohorts, gradient, squares


class SquaresFedACG(HalfSquares, FedACG):
    """FedACG on least squares."""


class SlopesFedACG(Slopes, FedACG):
    """FedACG on constant gradients."""


def paper(made: results.Run, local: LocalTraining, lookahead: float, mu: float) -> NDArray[np.float64]:
    """[d], the weights by the paper's rule, w + m with m = lambda m + mean change, with the cohorts of a run."""
    w, momentum = START, np.zeros(DIMENSION)
    for cohort in cohorts(made):
        start, moved = w + lookahead * momentum, []
        for client, steps in cohort:
            y, velocity = start, np.zeros(DIMENSION)
            for _ in range(steps):
                velocity = local.momentum * velocity + gradient(client, y) + mu * (y - start)
                y = y - local.lr * velocity
            moved.append(y - start)
        momentum = lookahead * momentum + np.mean(moved, 0)
        w = w + momentum
    return w


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_it_is_the_papers(momentum: float, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: `paper`, with three of five clients per round."""
    local = LocalTraining(epochs=4, lr=0.05, momentum=momentum, vectorize=vectorize)
    made = squares(tmp_path / "run.h5", SquaresFedACG(0.7, 0.5), 6, local, sampler=Uniform(), cohort=3)
    expected = paper(made, local, 0.7, 0.5)
    assert np.linalg.norm(expected - paper(made, local, 0.0, 0.5)) > 0.1
    assert np.linalg.norm(expected - paper(made, local, 0.7, 0.0)) > 0.01
    np.testing.assert_allclose(made.weights, expected, rtol=1e-5)


def test_constant_changes(tmp_path: Path) -> None:
    """Oracle: the sum over i of (1 - lambda^i) / (1 - lambda) changes, after every round, and the momentum."""
    slope = read(Regression()).train_x[:, :-1].astype(np.float64).mean(0)
    for rounds, ways in enumerate((1.0, 2.85, 5.4225, 8.609125), 1):
        assert ways == pytest.approx(sum((1 - 0.85**i) / 0.15 for i in range(1, rounds + 1)))
        algorithm = SlopesFedACG(0.85, 0.0)
        made = squares(tmp_path / f"{rounds}.h5", algorithm, rounds, LocalTraining(steps=2, lr=0.05))
        np.testing.assert_allclose(made.weights, START - ways * 0.1 * slope, rtol=1e-6)
    np.testing.assert_allclose(algorithm.momentum.numpy(), -0.1 * slope * (8.609125 - 5.4225), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "mu"), [(FedAvg(), 0.0), (FedProx(0.1), 0.1)])
def test_without_looking_ahead(method: Algorithm, mu: float, tmp_path: Path) -> None:
    """Oracle: FedAvg, or FedProx, bit for bit and byte for byte; and ahead something else, from the second round."""
    local = LocalTraining(epochs=1, lr=0.05, momentum=0.5, weight_decay=1e-3)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(150), "partition": Dirichlet(0.5), "local": local}
    made, plain, ahead = (
        run(tmp_path / f"{number}.h5", one, rounds=2, **settings)
        for number, one in enumerate((FedACG(0.0, mu), method, FedACG(0.5, mu)))
    )
    assert made.weights_sha256 == plain.weights_sha256 != ahead.weights_sha256
    for column in ("train_loss", "test_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    np.testing.assert_array_equal(ahead.rounds["bytes_down"], plain.rounds["bytes_down"])
    assert (ahead.rounds["test_loss"] == plain.rounds["test_loss"]).tolist() == [True, False]


def test_the_mean_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the only client's trained model, bit for bit, is what is evaluated, with its running statistics."""
    spy = Spy(monkeypatch)
    local = LocalTraining(epochs=1, lr=0.05)
    run(tmp_path / "run.h5", FedACG(), rounds=3, model=LeNet(), dataset=Few(40), clients=1, local=local)
    for round in (1, 2, 3):
        np.testing.assert_array_equal(spy.measured[round][0].double().numpy(), spy.trained[round][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--algorithm.lookahead 1", "--algorithm.lookahead = 1.0: must be at least 0 and below 1"),
        ("--algorithm.mu -1", "--algorithm.mu = -1.0: must be at least 0"),
        (
            "--server_optimizer Adam",
            "--server_optimizer = Adam: must be Replace with FedACG, which has its own server update",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", "FedACG", *arguments.split()])
    assert str(error.value) == message
