"""FedProx: FedAvg without its pull, the closed form on least squares, and less movement the stronger it pulls."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import (
    CLIENTS,
    DIMENSION,
    EACH,
    InOrder,
    OneVector,
    Regression,
    SquaresFedAvg,
    SquaresFedProx,
)
from tests.support.digits import Few
from tests.support.experiments import read, run

START = np.arange(1.0, DIMENSION + 1)
MUS = (0.0, 0.1, 1.0, 10.0)


def squares(path: Path, mu: float, **local: Any) -> results.Run:
    """A run on least squares, in full batches."""
    settings = LocalTraining(batch_size=EACH, **local)
    parts: dict[str, Any] = {"dataset": Regression(), "partition": InOrder(), "model": OneVector()}
    algorithm = SquaresFedProx(mu) if mu else SquaresFedAvg()
    return run(path, algorithm, **parts, clients=CLIENTS, local=settings, rounds=2, evaluate_every=0)


def closed_form(mu: float, rounds: int = 2) -> NDArray[np.float64]:
    """The mean of the clients' solutions of (A + mu I) w = A'b + mu w_t, round by round."""
    samples = read(Regression()).train_x.astype(np.float64).reshape(CLIENTS, EACH, DIMENSION + 1)
    weights = START
    for _ in range(rounds):
        solutions = []
        for equations in samples:
            a, b = equations[:, :-1], equations[:, -1]
            solutions.append(np.linalg.solve(a.T @ a / EACH + mu * np.eye(DIMENSION), a.T @ b / EACH + mu * weights))
        weights = np.mean(solutions, 0)
    return weights


def test_without_pull_it_is_fedavg(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, with momentum, decay and clipping; and with a pull something else."""
    local = LocalTraining(epochs=2, momentum=0.9, weight_decay=1e-3, clip_norm=5.0, lr=0.02)
    runs = [
        run(tmp_path / f"{name}.h5", algorithm, model=LeNet(), dataset=Few(200), rounds=2, local=local)
        for name, algorithm in (("avg", FedAvg()), ("none", FedProx(0)), ("some", FedProx(0.01)))
    ]
    assert runs[0].weights_sha256 == runs[1].weights_sha256
    for column in ("train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(runs[0].rounds[column], runs[1].rounds[column])
    assert runs[0].weights_sha256 != runs[2].weights_sha256


@pytest.mark.parametrize("mu", MUS)
def test_closed_form(mu: float, tmp_path: Path) -> None:
    """Oracle: the closed form of the converged local solutions, over two rounds."""
    made = squares(tmp_path / "run.h5", mu, epochs=400, lr=min(0.3, 0.9 / (1 + mu)))
    np.testing.assert_allclose(made.weights, closed_form(mu), rtol=2e-5)


def test_the_stronger_the_pull_the_shorter_the_way(tmp_path: Path) -> None:
    """Oracle: monotonic, over converged solutions; one step alone does not feel the pull, two do."""
    ways = [float(np.linalg.norm(closed_form(mu, 1) - START)) for mu in MUS]
    assert all(near < far for far, near in pairwise(ways)), "so it is for the closed form"
    runs = [squares(tmp_path / f"{mu}.h5", mu, epochs=100, lr=0.05) for mu in MUS]
    ways = [float(np.linalg.norm(made.weights - START)) for made in runs]
    assert all(near < 0.99 * far for far, near in pairwise(ways))
    for steps, alike in ((1, True), (2, False)):
        without, pulled = (squares(tmp_path / f"{steps}-{mu}.h5", mu, epochs=steps, lr=0.1) for mu in (0.0, 1.0))
        assert np.array_equal(without.weights, pulled.weights) == alike


def test_anchored_at_zero_it_is_weight_decay(tmp_path: Path) -> None:
    """Oracle: FedAvg with mu more weight decay, to 1e-5 of the way; and not what the global model's pull gives."""
    settings: dict[str, Any] = {"model": LeNet(norm="group"), "rounds": 2}
    local: dict[str, Any] = {"epochs": 2, "batch_size": 50, "momentum": 0.9, "lr": 0.05}
    zero, there, decay = (
        run(tmp_path / f"{name}.h5", algorithm, local=LocalTraining(weight_decay=more, **local), **settings).weights
        for name, algorithm, more in (
            ("zero", FedProx(0.05, "zero"), 1e-3),
            ("global", FedProx(0.05), 1e-3),
            ("decay", FedAvg(), 0.05 + 1e-3),
        )
    )
    assert np.linalg.norm(zero - decay) < 1e-5 * np.linalg.norm(decay)
    assert np.linalg.norm(there - decay) > 1e-2 * np.linalg.norm(decay)


@pytest.mark.parametrize(("momentum", "limit"), [(0.0, 20), (0.5, 30)])
def test_pulls_that_overshoot(momentum: float, limit: float, tmp_path: Path) -> None:
    """Oracle: w -= lr v, v := momentum v + mu w, ends at 0 just below the limit, and nowhere just above it."""
    for mu, converges in ((0.99 * limit, True), (1.01 * limit, False)):
        w, v = 1.0, 0.0
        for _ in range(2000):
            v = momentum * v + mu * w
            w -= 0.1 * v
        assert (abs(w) < 1e-3) == converges
        local = LocalTraining(steps=1, lr=0.1, momentum=momentum)
        if converges:
            run(tmp_path / "run.h5", FedProx(mu), local=local)
        else:
            message = f"--algorithm.mu = {mu}: must be below {limit}, for steps of --local.lr = 0.1"
            with pytest.raises(BadInput) as error:
                run(tmp_path / "none.h5", FedProx(mu), local=local)
            assert str(error.value) == message
            run(tmp_path / "adam.h5", FedProx(mu), local=LocalTraining(steps=1, lr=0.1, optimizer="adam"))


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_pulls_that_cannot_be(mu: float) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=r"mu = .*: must be at least 0"):
        FedProx(mu)
