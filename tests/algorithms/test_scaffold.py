"""SCAFFOLD: the paper's pseudo-code in NumPy, the exact optimum, its invariant, and FedAvg where they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.models import LeNet
from fedmpi.policies import Cohort, Uniform, Weighted
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, SquaresSCAFFOLD
from tests.support.experiments import run
from tests.support.least_squares import OPTIMUM, START, cohorts, doubled, gradient, limit, squares

PARTIAL: dict[str, Any] = {"sampler": Uniform(), "cohort": 2}


class Watched(SquaresSCAFFOLD):
    """Remembers the control variates after each round."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.seen: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.seen.append((self.control.numpy(), controls(self)))


class Frozen(SCAFFOLD):
    """Forgets its control variates after each round."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.control.zero_()
        self.controls.rows.clear()


def controls(algorithm: SCAFFOLD, clients: int = CLIENTS) -> NDArray[np.float32]:
    """[clients, d]"""
    state = algorithm.controls
    return np.stack([state.rows.get(client, state.initial).numpy() for client in range(clients)])


def paper(
    made: results.Run, local: LocalTraining, option: str, server_lr: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Algorithm 1 with the cohorts and steps of a run: w, c and c_k.

    A new control variate is the mean of the gradients themselves, each weighted by how often momentum repeats it;
    nothing is divided by a learning rate.
    """
    w, c, own = START, np.zeros(DIMENSION), np.zeros((CLIENTS, DIMENSION))
    rounds = cohorts(made)
    for number, cohort in enumerate(rounds, 1):
        lr = local.lr * (local.decay ** (number - 1) if local.schedule == "exponential" else 1)
        ways, changes = [], []
        for client, recorded in cohort:
            steps = recorded - (option == "I")  # whose pass for the gradient, here of one batch, is among them
            y, velocity, gradients = w, np.zeros(DIMENSION), []
            for _ in range(steps):
                gradients.append(gradient(client, y))
                velocity = local.momentum * velocity + gradients[-1] - own[client] + c
                y = y - lr * velocity
            repeats = [sum(local.momentum**later for later in range(steps - i)) for i in range(steps)]
            new = np.average(gradients, axis=0, weights=repeats) if option == "II" else gradient(client, w)
            ways.append(y - w)
            changes.append(new - own[client])
            own[client] = new
        w = w + server_lr * np.mean(ways, 0)
        c = c + np.sum(changes, 0) / CLIENTS
    return w, c, own


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_it_is_the_papers(
    option: Literal["I", "II"], vectorize: Literal["off", 4], momentum: float, tmp_path: Path
) -> None:
    """Oracle: `paper`, in float64. The learning rate falls to a fortieth, so the undecayed one would show."""
    local = LocalTraining(
        epochs=5, lr=0.03, schedule="exponential", decay=0.7, vectorize=vectorize, momentum=momentum
    )
    algorithm = SquaresSCAFFOLD(option)
    settings: dict[str, Any] = {"sampler": Uniform(), "cohort": 3, "server_optimizer": Momentum(0.8, 0.0)}
    made = squares(tmp_path / "run.h5", algorithm, 11, local, **settings)
    w, c, own = paper(made, local, option, 0.8)
    assert np.linalg.norm(w - START) > 0.5
    np.testing.assert_allclose(made.weights, w, rtol=1e-5)
    # What is divided by a small learning rate is the rounding error of the weights, too.
    atol = 1e-6 if option == "I" else 1e-6 / (local.lr * local.decay**10)
    np.testing.assert_allclose(algorithm.control.numpy(), c, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(controls(algorithm), own, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("sampling", [{}, PARTIAL], ids=["all", "two of five"])
def test_the_exact_optimum(sampling: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the closed form, from which FedAvg stays away; there, c is 0 and c_k the client's gradient."""
    algorithm = SquaresSCAFFOLD()
    made = squares(tmp_path / "run.h5", algorithm, 80, LocalTraining(epochs=5, lr=0.1), **sampling)
    assert np.linalg.norm(limit((5,) * CLIENTS, 0.1) - OPTIMUM) > 0.1
    assert np.linalg.norm(made.weights - OPTIMUM) < 3e-6
    at_optimum = np.stack([gradient(client, OPTIMUM) for client in range(CLIENTS)])
    assert np.abs(at_optimum).max() > 1
    np.testing.assert_allclose(algorithm.control.numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(controls(algorithm), at_optimum, atol=1e-5)


@pytest.mark.parametrize("option", ["I", "II"])
def test_the_servers_is_the_mean_of_all(option: Literal["I", "II"], tmp_path: Path) -> None:
    """Oracle: the mean over all clients after every round, to the rounding errors of 40 float32 additions."""
    algorithm = Watched(option)
    squares(tmp_path / "run.h5", algorithm, 40, LocalTraining(epochs=3), **PARTIAL)
    assert len(algorithm.seen) == 40
    assert np.abs(algorithm.seen[0][0]).max() > 0.1
    for control, own in algorithm.seen:
        np.testing.assert_allclose(control, own.mean(0, dtype=np.float64), atol=1e-6 * np.abs(own).max())


def test_one_client_is_sgd(tmp_path: Path) -> None:
    """Oracle: FedAvg of one client, that is plain SGD: bit for bit after a round, to 1e-6 of the way after 4."""
    settings: dict[str, Any] = {"model": LeNet(), "clients": 1, "local": LocalTraining(epochs=1, batch_size=100)}
    for rounds, tolerance in ((1, 0.0), (4, 1e-6)):
        one = run(tmp_path / "one.h5", SCAFFOLD(), rounds=rounds, overwrite=True, **settings)
        plain = run(tmp_path / "plain.h5", rounds=rounds, overwrite=True, **settings)
        way = np.linalg.norm(plain.weights)
        assert np.linalg.norm(one.weights - plain.weights) <= tolerance * way


@pytest.mark.parametrize(("option", "vectorize"), [("I", "off"), ("II", 4)])
def test_without_control_it_is_fedavg(
    option: Literal["I", "II"], vectorize: Literal["off", 4], tmp_path: Path
) -> None:
    """Oracle: FedAvg, uniformly weighted, bit for bit; and with control variates something else."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "rounds": 2,
        "partition": Dirichlet(0.3),
        "local": LocalTraining(epochs=1, batch_size=100, momentum=0.5, weight_decay=1e-3, vectorize=vectorize),
    }
    plain = run(tmp_path / "plain.h5", weighting="uniform", **settings)
    frozen = run(tmp_path / "frozen.h5", Frozen(option), **settings)
    assert frozen.weights_sha256 == plain.weights_sha256
    assert run(tmp_path / "run.h5", SCAFFOLD(), **settings).weights_sha256 != plain.weights_sha256


def test_statistics_are_averaged_plainly(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit: with one step a round, its second round measures the same weights as ours."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "rounds": 2,
        "clients": 6,
        "cohort": 3,
        "sampler": Uniform(),
        "local": LocalTraining(steps=1, batch_size=30),
    }
    algorithm = SCAFFOLD()
    made = run(tmp_path / "run.h5", algorithm, **settings)
    plain = run(tmp_path / "plain.h5", weighting="uniform", **settings)
    count = len(algorithm.control)
    assert count < len(made.weights)
    np.testing.assert_array_equal(made.weights[count:], plain.weights[count:])
    assert (made.weights[:count] != plain.weights[:count]).mean() > 0.5


def test_weighted_by_samples(tmp_path: Path) -> None:
    """Oracle: a client with each of its samples twice is two clients."""
    one, other, uniform = doubled(tmp_path, SquaresSCAFFOLD, 8, LocalTraining(epochs=5, lr=0.05))
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-5)
    assert np.abs(uniform.weights - one.weights).max() > 0.1


def test_bytes(tmp_path: Path) -> None:
    """Oracle: twice the parameters and once the statistics, 4 bytes each, down to and up from each of 3 clients."""
    algorithm = SCAFFOLD()
    settings: dict[str, Any] = {"model": LeNet(), "sampler": Uniform(), "clients": 8, "cohort": 3, "rounds": 2}
    made = run(tmp_path / "run.h5", algorithm, **settings, local=LocalTraining(steps=1))
    each = 4 * (len(made.weights) + len(algorithm.control))
    assert made.rounds["bytes_down"].tolist() == made.rounds["bytes_up"].tolist() == [3 * each] * 2


def test_what_it_refuses(tmp_path: Path) -> None:
    """Oracle: the messages."""
    with pytest.raises(BadInput, match=r"--local.optimizer = adam: must be sgd with SCAFFOLD"):
        run(tmp_path / "adam.h5", SCAFFOLD(), local=LocalTraining(optimizer="adam"))
    with pytest.raises(BadInput, match=r"sampler = Weighted: sets the clients' weights itself"):
        run(tmp_path / "twice.h5", SCAFFOLD(), sampler=Weighted())
