"""FedCM: the paper's pseudo-code in NumPy, constant gradients in closed form, and FedAvg where they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedcm import FedCM
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import DIMENSION, HalfSquares, Regression, Slopes
from tests.support.digits import SHAPE, Few
from tests.support.experiments import CPU, network, read, run
from tests.support.least_squares import START, Uneven, cohorts, gradient, squares
from tests.training.test_sidebyside import MODELS, Both, compare, double

__all__ = ["double"]  # a fixture

FALLING = LocalTraining(epochs=4, lr=0.05, schedule="exponential", decay=0.5)


class SquaresFedCM(HalfSquares, FedCM):
    """FedCM on least squares."""


class SlopesFedCM(Slopes, FedCM):
    """FedCM on constant gradients."""


def paper(made: results.Run, local: LocalTraining, alpha: float, server_lr: float = 1.0) -> NDArray[np.float64]:
    """[d], the weights by the paper's rule, with the cohorts and steps of a run."""
    w, momentum = START, np.zeros(DIMENSION)
    for number, cohort in enumerate(cohorts(made), 1):
        lr, moved = local.lr * local.decay ** (number - 1), []
        for client, steps in cohort:
            y = w
            for _ in range(steps):
                y = y - lr * (alpha * gradient(client, y) + (1 - alpha) * momentum)
            moved.append(y - w)
        change = np.mean(moved, 0)
        momentum = -change / (lr * np.mean([steps for _, steps in cohort]))
        w = w + server_lr * change
    return w


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_it_is_the_papers(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: `paper`, with unequal steps and a server's rate, or some clients; the local rate falls to a 32nd."""
    local = LocalTraining(epochs=4, lr=0.05, schedule="exponential", decay=0.5, vectorize=vectorize)
    settings: dict[str, Any] = {"server_optimizer": Momentum(0.8, 0.0), "sampler": Uneven((1, 0.5, 0.25, 1, 0.75))}
    made = squares(tmp_path / "uneven.h5", SquaresFedCM(0.3), 6, local, **settings)
    expected = paper(made, local, 0.3, 0.8)
    assert len({steps for _, steps in cohorts(made)[0]}) > 2
    assert np.linalg.norm(expected - START) > 0.3
    np.testing.assert_allclose(made.weights, expected, rtol=1e-5)
    made = squares(tmp_path / "some.h5", SquaresFedCM(0.3), 6, local, sampler=Uniform(), cohort=2)
    np.testing.assert_allclose(made.weights, paper(made, local, 0.3), rtol=1e-5)


def test_constant_gradients(tmp_path: Path) -> None:
    """Oracle: -lr_t steps g (1 - (1 - alpha)^t) in round t, also if the rate halves from round to round."""
    slope = read(Regression()).train_x[:, :-1].astype(np.float64).mean(0)
    shares = 1 - 0.9 ** np.arange(1, 5)
    np.testing.assert_allclose(shares, [0.1, 0.19, 0.271, 0.3439])
    algorithm = SlopesFedCM(0.1)
    made = squares(tmp_path / "run.h5", algorithm, 4, FALLING)
    expected = START - slope * 4 * (0.05 * 0.5 ** np.arange(4) * shares).sum()
    np.testing.assert_allclose(made.weights, expected, rtol=1e-6)
    # What is divided by a small rate is the rounding error of the weights, too.
    np.testing.assert_allclose(algorithm.momentum.numpy(), slope * shares[-1], atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_without_momentum_it_is_fedavg(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, with decay and clipping; but with one vector more down; else something else."""
    local = LocalTraining(epochs=1, lr=0.05, weight_decay=1e-3, clip_norm=5.0, vectorize=vectorize)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(150), "partition": Dirichlet(0.5), "local": local}
    algorithm = FedCM(1.0)
    made, plain, some = (
        run(tmp_path / f"{number}.h5", one, rounds=2, weighting="uniform", **settings)
        for number, one in enumerate((algorithm, FedAvg(), FedCM(0.5)))
    )
    assert made.weights_sha256 == plain.weights_sha256 != some.weights_sha256
    np.testing.assert_array_equal(made.rounds["bytes_up"], plain.rounds["bytes_up"])
    more = made.rounds["bytes_down"] - plain.rounds["bytes_down"]
    assert more.tolist() == [4 * 4 * len(algorithm.momentum)] * 2


def test_the_first_round(tmp_path: Path) -> None:
    """Oracle: FedAvg with alpha times the learning rate, to 1e-5 of the way."""
    settings: dict[str, Any] = {"model": LeNet("group"), "dataset": Few(80), "weighting": "uniform"}
    made = run(tmp_path / "made.h5", FedCM(0.25), local=LocalTraining(epochs=1, lr=0.2), **settings)
    plain = run(tmp_path / "plain.h5", local=LocalTraining(epochs=1, lr=0.05), **settings)
    start = FlatModel(network(LeNet("group"), SHAPE, 10), CPU)
    way = np.linalg.norm(plain.weights - start.layout.canonical(start.weights[0]).numpy())
    assert np.linalg.norm(made.weights - plain.weights) < 1e-5 * way


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one; 1e-12 of the way."""
    both = Both(MODELS[model], weight_decay=0.01, clip_norm=0.5)
    momentum = both.start[0, : both.plain.model.layout.parameters].sin()
    compare(both, FedCM(0.3), 1e-12, momentum=momentum.expand(8, -1))


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (LocalTraining(momentum=0.5), "--local.momentum = 0.5: must be 0 with FedCM"),
        (LocalTraining(optimizer="adam"), "--local.optimizer = adam: must be sgd with FedCM"),
    ],
)
def test_local_optimizers(local: LocalTraining, message: str, tmp_path: Path) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "run.h5", FedCM(), local=local)
    assert str(error.value) == message


@pytest.mark.parametrize("alpha", [0.0, 1.1])
def test_options_that_cannot_be(alpha: float) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match="must be above 0 and at most 1"):
        FedCM(alpha)
