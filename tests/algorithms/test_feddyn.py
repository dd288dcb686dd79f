"""FedDyn: the paper's pseudo-code in NumPy, the exact optimum, where nothing moves, and FedAvg where they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.feddyn import FedDyn
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.models import LeNet
from fedmpi.policies import Cohort, Uniform, Weighted
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, SquaresFedDyn
from tests.support.experiments import run
from tests.support.least_squares import OPTIMUM, START, cohorts, doubled, gradient, limit, squares

PARTIAL: dict[str, Any] = {"sampler": Uniform(), "cohort": 2}
AT_OPTIMUM = np.stack([gradient(client, OPTIMUM) for client in range(CLIENTS)])


class Watched(SquaresFedDyn):
    """Remembers h and g_k after each round."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.seen.append((self.drift.numpy(), gradients(self)))


class AtOptimum(SquaresFedDyn):
    """Starts from the optimum, with the clients' gradients there."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.weights = torch.from_numpy(OPTIMUM).float()
        self.gradients.rows.update(enumerate(torch.from_numpy(AT_OPTIMUM).float()))


class Still(FedDyn):
    """Stays where it starts."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        pass


def gradients(algorithm: FedDyn) -> NDArray[np.float32]:
    """[clients, d]"""
    state = algorithm.gradients
    return np.stack([state.rows.get(client, state.initial).numpy() for client in range(CLIENTS)])


def paper(
    made: results.Run, local: LocalTraining, alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Algorithm 1 with the cohorts and steps of a run: w, h and g_k."""
    w, h, own = START, np.zeros(DIMENSION), np.zeros((CLIENTS, DIMENSION))
    for number, cohort in enumerate(cohorts(made), 1):
        lr = local.lr * local.decay ** (number - 1)
        models = []
        for client, steps in cohort:
            y, velocity = w, np.zeros(DIMENSION)
            for _ in range(steps):
                of_penalty = alpha * (y - w)  # that of alpha / 2 |y - w|^2, not of the norm itself
                velocity = local.momentum * velocity + gradient(client, y) - own[client] + of_penalty
                y = y - lr * velocity
            own[client] = own[client] - alpha * (y - w)
            models.append(y)
        h = h - alpha / CLIENTS * sum(y - w for y in models)
        w = np.mean(models, 0) - h / alpha
    return w, h, own


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_it_is_the_papers(vectorize: Literal["off", 4], alpha: float, tmp_path: Path) -> None:
    """Oracle: `paper`, in float64; the learning rate falls, and there is momentum."""
    local = LocalTraining(epochs=5, lr=0.1, schedule="exponential", decay=0.9, momentum=0.5, vectorize=vectorize)
    algorithm = SquaresFedDyn(alpha)
    made = squares(tmp_path / "run.h5", algorithm, 10, local, sampler=Uniform(), cohort=3)
    w, h, own = paper(made, local, alpha)
    assert np.linalg.norm(w - START) > 0.5
    np.testing.assert_allclose(made.weights, w, rtol=2e-5)
    np.testing.assert_allclose(algorithm.drift.numpy(), h, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradients(algorithm), own, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("steps", "rounds", "sampling"),
    [(20, 32, {}), (5, 32, {}), (5, 120, PARTIAL)],
    ids=["nearly solved", "5 steps", "two of five"],
)
def test_the_exact_optimum(steps: int, rounds: int, sampling: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the closed form, from which FedAvg stays away; there, h is 0 and g_k the client's gradient."""
    algorithm = SquaresFedDyn(1.0)
    made = squares(tmp_path / "run.h5", algorithm, rounds, LocalTraining(epochs=steps, lr=0.2), **sampling)
    assert np.linalg.norm(limit((steps,) * CLIENTS, 0.2) - OPTIMUM) > 0.1
    assert np.linalg.norm(made.weights - OPTIMUM) < 5e-6
    assert np.abs(AT_OPTIMUM).max() > 1
    np.testing.assert_allclose(algorithm.drift.numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(gradients(algorithm), AT_OPTIMUM, atol=1e-5)


def test_the_servers_is_the_mean_of_all(tmp_path: Path) -> None:
    """Oracle: the mean of g_k over all clients after every round, to rounding errors of 40 float32 additions."""
    algorithm = Watched(0.5)
    squares(tmp_path / "run.h5", algorithm, 40, LocalTraining(epochs=3), **PARTIAL)
    assert np.abs(algorithm.seen[0][0]).max() > 0.1
    for drift, own in algorithm.seen:
        np.testing.assert_allclose(drift, own.mean(0, dtype=np.float64), atol=1e-6 * np.abs(own).max())


def test_at_the_optimum_nothing_moves(tmp_path: Path) -> None:
    """Oracle: the optimum, from which 10 rounds of 5 steps lead no further than float32 can tell."""
    algorithm = AtOptimum(1.0)
    made = squares(tmp_path / "run.h5", algorithm, 10, LocalTraining(epochs=5, lr=0.1))
    np.testing.assert_allclose(made.weights, OPTIMUM, rtol=0, atol=2e-6)
    np.testing.assert_allclose(gradients(algorithm), AT_OPTIMUM, rtol=0, atol=2e-6)
    assert np.abs(made.weights).max() > 1


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_the_first_round_is_fedavgs(vectorize: Literal["off", 4], tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit for statistics; parameters go on by its way times the cohort's share of all.

    (With g_k = 0 and a tiny alpha local training is FedAvg's, and h / alpha is that part of its way.)
    """
    settings: dict[str, Any] = {
        "model": LeNet(),
        "partition": Dirichlet(0.3),
        "clients": 6,
        "sampler": Uniform(),
        "local": LocalTraining(epochs=1, batch_size=100, vectorize=vectorize),
    }
    for cohort in (6, 3):
        algorithm = FedDyn(1e-30)
        made = run(tmp_path / f"{cohort}.h5", algorithm, **settings, cohort=cohort)
        plain = run(tmp_path / f"plain{cohort}.h5", weighting="uniform", **settings, cohort=cohort)
        trained = slice(0, len(algorithm.drift))
        assert trained.stop < len(made.weights)
        np.testing.assert_array_equal(made.weights[trained.stop :], plain.weights[trained.stop :])
        start = run(tmp_path / f"start{cohort}.h5", Still(), **settings, cohort=cohort).weights
        way = plain.weights - start
        np.testing.assert_allclose(
            (made.weights - start)[trained], (1 + cohort / 6) * way[trained], rtol=1e-5, atol=5e-7
        )
        assert np.abs(way[trained]).max() > 0.01


def test_weighted_by_samples(tmp_path: Path) -> None:
    """Oracle: a client with each of its samples twice is two clients."""
    one, other, uniform = doubled(tmp_path, SquaresFedDyn, 8, LocalTraining(epochs=5, lr=0.05))
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-5)
    assert np.abs(uniform.weights - one.weights).max() > 0.1


def test_bytes(tmp_path: Path) -> None:
    """Oracle: FedAvg's: one model of 4-byte numbers down to and one up from each of 3 clients."""
    settings: dict[str, Any] = {"model": LeNet(), "sampler": Uniform(), "clients": 8, "cohort": 3, "rounds": 2}
    made = run(tmp_path / "run.h5", FedDyn(), **settings, local=LocalTraining(steps=1))
    each = 4 * len(made.weights)
    assert made.rounds["bytes_down"].tolist() == made.rounds["bytes_up"].tolist() == [3 * each] * 2


def test_what_it_refuses(tmp_path: Path) -> None:
    """Oracle: the messages."""
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match=r"alpha = .*: must be above 0"):
            FedDyn(alpha)
    with pytest.raises(BadInput, match=r"sampler = Weighted: sets the clients' weights itself"):
        run(tmp_path / "twice.h5", FedDyn(), sampler=Weighted())
    with pytest.raises(
        BadInput, match=r"server_optimizer = Momentum: must be Replace with FedDyn, which has its own server update"
    ):
        run(tmp_path / "momentum.h5", FedDyn(), server_optimizer=Momentum())
