"""FedNova: the paper's rule in NumPy, what a gradient counts, equal work, and uneven work of different clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fednova import FedNova
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.block import Block
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, Regression, SquaresFedAvg, SquaresFedNova
from tests.support.experiments import read, run
from tests.support.least_squares import OPTIMUM, START, Sizes, Uneven, cohorts, gradient, limit, squares

STEPS = (2, 4, 8, 16, 1)
UNEVEN = Uneven(tuple(steps / 16 for steps in STEPS))


def way_of_ones(steps: int, momentum: float, pull: float) -> float:
    """How far PyTorch's SGD goes, if the gradient is 1 and a quadratic term pulls back."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.125, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        (weight + pull / 0.125 / 2 * weight**2).sum().backward()
        optimizer.step()
    return -weight.item() / 0.125


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("pull", [0.0, 0.1])
def test_what_gradients_count(momentum: float, pull: float) -> None:
    """Oracles: torch.optim.SGD in float64; by hand: steps alone, and the paper's formulas with one of both."""
    counts = LocalTraining(momentum=momentum).normaliser(np.arange(1, 31), pull)
    np.testing.assert_allclose(counts, [way_of_ones(steps, momentum, pull) for steps in range(1, 31)], rtol=1e-12)
    steps = np.arange(1, 31)
    if not momentum:
        closed = (1 - (1 - pull) ** steps) / pull if pull else steps
        np.testing.assert_allclose(counts, closed, rtol=1e-12)
    elif not pull:
        closed = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
        np.testing.assert_allclose(counts, closed, rtol=1e-12)
    assert LocalTraining().normaliser(np.zeros(2, dtype=np.int64)).tolist() == [1, 1]


def paper(made: results.Run, local: LocalTraining, mu: float, server_lr: float) -> NDArray[np.float64]:
    """w -= eta_s tau_eff sum p_k d_k, with the cohorts and steps of a run."""
    w = START
    for number, cohort in enumerate(cohorts(made), 1):
        lr = local.lr * local.decay ** (number - 1)
        directions, counts = [], []
        for client, steps in cohort:
            y, velocity = w, np.zeros(DIMENSION)
            for _ in range(steps):
                velocity = local.momentum * velocity + gradient(client, y) + mu * (y - w)
                y = y - lr * velocity
            counts.append(way_of_ones(steps, local.momentum, lr * mu))
            directions.append((w - y) / counts[-1])
        w = w - server_lr * np.mean(counts) * np.mean(directions, 0)
    return w


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.8, 0.0), (0.0, 2.0), (0.8, 2.0)])
def test_it_is_the_papers(vectorize: Literal["off", 4], momentum: float, mu: float, tmp_path: Path) -> None:
    """Oracle: `paper`, in float64, with uneven work; the learning rate falls, and the server has one."""
    local = LocalTraining(
        steps=16, lr=0.02, schedule="exponential", decay=0.8, momentum=momentum, vectorize=vectorize
    )
    settings: dict[str, Any] = {"sampler": UNEVEN, "server_optimizer": Momentum(0.8, 0.0)}
    made = squares(tmp_path / "run.h5", SquaresFedNova(mu), 8, local, **settings)
    assert [steps for _, steps in cohorts(made)[0]] == list(STEPS)
    w = paper(made, local, mu, 0.8)
    assert np.linalg.norm(w - START) > 0.5
    np.testing.assert_allclose(made.weights, w, rtol=2e-5)


class Diverging(SquaresFedNova):
    """FedNova with a client whose every gradient is NaN."""

    lost = 0

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        gradient = super().direction(gradient, weights, start, block)
        gradient[np.flatnonzero(block.clients == self.lost)] = torch.nan
        return gradient


@pytest.mark.parametrize("make", [SquaresFedNova, Diverging])
def test_unequal_samples_and_steps(make: type[SquaresFedNova], tmp_path: Path) -> None:
    """Oracle: w += sum p_k a_k * sum p_k (w_k - w) / a_k in float64, p_k by the samples of those that are left.

    The mean number of steps that is not weighted is another one, and so is that with who diverged.
    """
    sizes = np.array([20, 4, 8, 8, 20])
    local = LocalTraining(steps=16, lr=0.01, vectorize="off")
    made = squares(tmp_path / "run.h5", make(), 3, local, sampler=UNEVEN, partition=Sizes(tuple(sizes)))
    parts = np.split(read(Regression()).train_x.astype(np.float64), np.cumsum(sizes)[:-1])
    left = [client for client in range(CLIENTS) if make is SquaresFedNova or client != Diverging.lost]
    p, steps = sizes[left] / sizes[left].sum(), np.array(STEPS)[left]
    assert abs(p @ steps - steps.mean()) > 1
    assert len(left) == CLIENTS or abs(p @ steps - sizes @ STEPS / sizes.sum()) > 1
    w = START
    for _ in range(3):
        ways = []
        for client in left:
            a, b, y = parts[client][:, :-1], parts[client][:, -1], w
            for _ in range(STEPS[client]):
                y = y - local.lr * a.T @ (a @ y - b) / len(b)
            ways.append((y - w) / STEPS[client])
        w = w + p @ steps * (p @ np.array(ways))
    assert np.linalg.norm(w - START) > 0.3
    np.testing.assert_allclose(made.weights, w, rtol=2e-5)


def test_uneven_work(tmp_path: Path) -> None:
    """Oracles: the closed forms of both limits; FedNova's is near the optimum, FedAvg's is far from it."""
    lr = 0.1
    local = LocalTraining(steps=16, lr=lr)
    ways = {}
    for algorithm, weights in (
        (SquaresFedAvg(), (1.0,) * CLIENTS),
        (SquaresFedNova(), tuple(1 / steps for steps in STEPS)),
    ):
        name = type(algorithm).__name__
        made = squares(tmp_path / f"{name}.h5", algorithm, 70, local, sampler=UNEVEN)
        ways[name] = np.linalg.norm(made.weights - OPTIMUM)
        np.testing.assert_allclose(made.weights, limit(STEPS, lr, weights), rtol=0, atol=1e-5)
    assert ways["SquaresFedAvg"] > 3 * ways["SquaresFedNova"]


@pytest.mark.parametrize(
    ("make", "mu", "local"),
    [
        (FedAvg, 0.0, {}),
        (FedAvg, 0.0, {"momentum": 0.9, "lr": 0.01}),
        (lambda: FedProx(0.5), 0.5, {"lr": 0.05, "vectorize": 4}),
    ],
    ids=["plain", "momentum", "pull"],
)
def test_equal_work_is_the_plain_mean(
    make: type[Algorithm], mu: float, local: dict[str, Any], tmp_path: Path
) -> None:
    """Oracle: FedAvg, or FedProx, to 1e-6 of the weights; clients of different sizes in 8 steps each."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "partition": Dirichlet(0.3),
        "local": LocalTraining(steps=8, batch_size=20, **local),
    }
    nova, plain = (
        run(tmp_path / f"{number}.h5", algorithm, **settings)
        for number, algorithm in enumerate((FedNova(mu), make()))
    )
    assert len(set(nova.partition["samples"])) == 4
    assert np.linalg.norm(nova.weights - plain.weights) < 1e-6 * np.linalg.norm(plain.weights)


def test_statistics_are_averaged_plainly(tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, with uneven work, which makes other parameters."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "partition": Dirichlet(0.3),
        "local": LocalTraining(epochs=1, batch_size=20),
    }
    nova, plain = (
        run(tmp_path / f"{number}.h5", algorithm, **settings)
        for number, algorithm in enumerate((FedNova(), FedAvg()))
    )
    assert len(set(nova.clients["steps"])) > 1
    ours, theirs = nova.state_dict(), plain.state_dict()
    statistics = [name for name in ours if "running" in name]
    assert statistics
    for name in statistics:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert (nova.weights != plain.weights).mean() > 0.5


def test_one_client_is_sgd(tmp_path: Path) -> None:
    """Oracle: FedAvg of one client, that is plain SGD, to 1e-6 of the weights after 3 rounds."""
    settings: dict[str, Any] = {"model": LeNet(), "clients": 1, "rounds": 3}
    settings["local"] = LocalTraining(epochs=1, batch_size=200, momentum=0.5)
    nova, plain = run(tmp_path / "nova.h5", FedNova(), **settings), run(tmp_path / "plain.h5", **settings)
    assert np.linalg.norm(nova.weights - plain.weights) < 1e-6 * np.linalg.norm(plain.weights)


def test_bytes(tmp_path: Path) -> None:
    """Oracle: FedAvg's: one model of 4-byte numbers down to and one up from each of 3 clients."""
    settings: dict[str, Any] = {"model": LeNet(), "sampler": Uniform(), "clients": 8, "cohort": 3, "rounds": 2}
    made = run(tmp_path / "run.h5", FedNova(), **settings, local=LocalTraining(steps=1))
    each = 4 * len(made.weights)
    assert made.rounds["bytes_down"].tolist() == made.rounds["bytes_up"].tolist() == [3 * each] * 2


def test_what_it_refuses(tmp_path: Path) -> None:
    """Oracle: the messages."""
    with pytest.raises(BadInput, match=r"mu = -1.0: must be at least 0"):
        FedNova(-1.0)
    with pytest.raises(BadInput, match=r"--local.optimizer = adam: must be sgd with FedNova"):
        run(tmp_path / "adam.h5", FedNova(), local=LocalTraining(optimizer="adam"))
