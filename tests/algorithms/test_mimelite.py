"""MimeLite: the paper's rules in NumPy, the central optimizer with one step per round, and FedAvg as the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.mimelite import MimeLite
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, HalfSquares, Regression, Slopes
from tests.support.digits import Few
from tests.support.experiments import read, run
from tests.support.least_squares import HESSIANS, SIDES, START, cohorts, gradient, squares
from tests.training.test_sidebyside import MODELS, Both, compare, double

__all__ = ["double"]  # a fixture


class SquaresMimeLite(HalfSquares, MimeLite):
    """MimeLite on least squares."""


class SlopesMimeLite(Slopes, MimeLite):
    """MimeLite on constant gradients."""


def paper(made: results.Run, local: LocalTraining, method: MimeLite) -> tuple[NDArray[np.float64], ...]:
    """w, m and v by the paper's rules, with the cohorts and steps of a run."""
    w, m, v = START, np.zeros(DIMENSION), np.zeros(DIMENSION)
    for number, cohort in enumerate(cohorts(made)):
        lr, models = local.lr * local.decay**number, []
        for client, steps in cohort:
            y = w
            for _ in range(steps - 1):  # the pass for the full gradient, of one batch, is among them
                step = (1 - method.beta1) * gradient(client, y) + method.beta1 * m
                y = y - lr * (step / (np.sqrt(v) + method.epsilon) if method.base == "adam" else step)
            models.append(y)
        full = np.mean([gradient(client, w) for client, _ in cohort], 0)
        w, m = np.mean(models, 0), (1 - method.beta1) * full + method.beta1 * m
        v = (1 - method.beta2) * full**2 + method.beta2 * v
    return w, m, v


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_it_is_the_papers(base: Literal["momentum", "adam"], vectorize: Any, tmp_path: Path) -> None:
    """Oracle: `paper`, with three of five clients and a rate that falls. With one round, m = (1 - beta1) mean g."""
    rate = 0.05 if base == "momentum" else 0.02
    local = LocalTraining(epochs=4, lr=rate, schedule="exponential", decay=0.8, vectorize=vectorize)
    for rounds in (1, 6):
        method = SquaresMimeLite(base, 0.8, 0.9, 0.1)
        some: dict[str, Any] = {"sampler": Uniform(), "cohort": 3}
        made = squares(tmp_path / f"{rounds}.h5", method, rounds, local, **some)
        w, m, v = paper(made, local, method)
        assert np.linalg.norm(w - START) > 0.1
        np.testing.assert_allclose(made.weights, w, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(method.moments[0].numpy(), m, rtol=1e-4, atol=1e-4)
        if base == "adam":
            np.testing.assert_allclose(method.moments[1].numpy(), v, rtol=1e-4, atol=1e-4)
        else:
            assert len(method.moments) == 1


def test_constant_gradients(tmp_path: Path) -> None:
    """Oracle: -lr steps g (1 - beta^t) in round t."""
    slope = read(Regression()).train_x[:, :-1].astype(np.float64).mean(0)
    shares = 1 - 0.9 ** np.arange(1, 5)
    made = squares(tmp_path / "run.h5", SlopesMimeLite(), 4, LocalTraining(epochs=3, lr=0.05))
    np.testing.assert_allclose(made.weights, START - slope * 3 * 0.05 * shares.sum(), rtol=1e-5)


def test_one_step_is_central_momentum(tmp_path: Path) -> None:
    """Oracle: gradient descent with momentum on the mean of the losses, with all clients and one step per round."""
    w, m = START, np.zeros(DIMENSION)
    for _ in range(20):
        m = 0.1 * (HESSIANS.mean(0) @ w - SIDES.mean(0)) + 0.9 * m
        w = w - 0.1 * m
    made = squares(tmp_path / "run.h5", SquaresMimeLite(), 20, LocalTraining(epochs=1, lr=0.1))
    assert made.clients["steps"].tolist() == [2] * 20 * CLIENTS
    np.testing.assert_allclose(made.weights, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_without_momentum_it_is_fedavg(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg's model, bit for bit, with a vector more each way; and with momentum another model."""
    local = LocalTraining(epochs=1, lr=0.05, weight_decay=1e-3, clip_norm=5.0, vectorize=vectorize)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(150), "partition": Dirichlet(0.5), "local": local}
    method = MimeLite(beta1=0.0)
    made, plain, some = (
        run(tmp_path / f"{number}.h5", one, rounds=2, weighting="uniform", **settings)
        for number, one in enumerate((method, FedAvg(), MimeLite(beta1=0.5)))
    )
    assert made.weights_sha256 == plain.weights_sha256 != some.weights_sha256
    for column in ("bytes_up", "bytes_down"):
        more = made.rounds[column] - plain.rounds[column]
        assert more.tolist() == [4 * 4 * method.moments.shape[1]] * 2


@pytest.mark.parametrize("base", ["momentum", "adam"])
@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(base: Literal["momentum", "adam"], model: str) -> None:
    """Oracle: clients one by one; 1e-12 of the way."""
    both = Both(MODELS[model], weight_decay=0.01, clip_norm=0.5)
    first = both.start[0, : both.plain.model.layout.parameters].sin()
    second = first.cos().square()
    compare(both, MimeLite(base, 0.7), 1e-12, first=first.expand(8, -1), second=second.expand(8, -1))


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (LocalTraining(momentum=0.5), "--local.momentum = 0.5: must be 0 with MimeLite, which has its own"),
        (LocalTraining(optimizer="adam"), "--local.optimizer = adam: must be sgd with MimeLite"),
    ],
)
def test_local_optimizers(local: LocalTraining, message: str, tmp_path: Path) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "run.h5", MimeLite(), local=local)
    assert str(error.value) == message
