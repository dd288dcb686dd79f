"""FedExP: the step size by hand for changes at known angles, NumPy over several rounds, and FedAvg as the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedexp import FedExP
from fedmpi.data import Arrays, Dirichlet, Progress
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, HalfSquares, Regression, Slopes, SquaresFedAvg
from tests.support.digits import Few
from tests.support.experiments import Spy, run
from tests.support.least_squares import START, cohorts, gradient, limit, squares

ONE_STEP = LocalTraining(steps=1, lr=0.1)


class SquaresFedExP(HalfSquares, FedExP):
    """FedExP on least squares."""


class SlopesFedExP(Slopes, FedExP):
    """FedExP on constant gradients."""


class Directions(Regression):
    """One sample per client, whose coefficients are the gradient of `Slopes`."""

    def __init__(self, slopes: NDArray[np.float64]) -> None:
        self.slopes = slopes

    def read(self, progress: Progress) -> Arrays:
        x = np.column_stack([self.slopes, np.zeros(len(self.slopes))]).astype(np.float32)
        return Arrays(x, np.zeros(len(x), np.int64), x, np.zeros(len(x), np.int64))


def one_round(path: Path, slopes: NDArray[np.float64], epsilon: float) -> tuple[float, results.Run]:
    """The step size if client k's change is -0.1 of row k."""
    dataset = Directions(slopes)
    made = squares(path, SlopesFedExP(epsilon), 1, ONE_STEP, dataset=dataset, clients=len(slopes))
    eta = made.rounds["extrapolation"][0]
    start = np.arange(1.0, slopes.shape[1] + 1)
    np.testing.assert_allclose(made.weights, start - 0.1 * eta * slopes.mean(0), rtol=1e-6)
    np.testing.assert_allclose(made.clients["change"], np.square(0.1 * slopes).sum(1), rtol=1e-4)
    return float(eta), made


@pytest.mark.parametrize("clients", [2, 4, 8])
def test_orthogonal_changes(clients: int, tmp_path: Path) -> None:
    """Oracle: half the number of clients; and with an epsilon as large as their |change|^2 less, by the formula."""
    eta, _ = one_round(tmp_path / "run.h5", 3 * np.eye(8)[:clients], 1e-12)
    assert eta == pytest.approx(clients / 2, rel=1e-5)
    length = 0.09  # of each change, squared
    eta, _ = one_round(tmp_path / "more.h5", 3 * np.eye(8)[:clients], length / 8)
    assert eta == pytest.approx(max(1, length / (2 * (length / clients + length / 8))), rel=1e-5)


@pytest.mark.parametrize(("cosine", "expected"), [(-0.6, 2.5), (-0.2, 1.25), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0)])
def test_two_changes_at_an_angle(cosine: float, expected: float, tmp_path: Path) -> None:
    """Oracle: max(1, 1 / (1 + cosine)) for changes of equal length."""
    slopes = np.array([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])
    eta, _ = one_round(tmp_path / "run.h5", 5 * slopes, 1e-12)
    assert eta == pytest.approx(expected, rel=1e-5)


def paper(made: results.Run, lr: float, epsilon: float, decay: float) -> tuple[NDArray[np.float64], list[float]]:
    """[d], the half-way model of the last round by the paper's rule, and the step size of each round."""
    w, sizes, before = START, [], START
    for number, cohort in enumerate(cohorts(made)):
        moved = []
        for client, steps in cohort:
            y = w
            for _ in range(steps):
                y = y - lr * gradient(client, y)
            moved.append(y - w)
        change, square = np.mean(moved, 0), np.mean(np.square(moved).sum(1))
        sizes.append(max(1.0, square / (2 * (change @ change + epsilon * decay**number))))
        before, w = w, w + sizes[-1] * change
    return (before + w) / 2, sizes


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_it_is_the_papers(vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: `paper`, with three of five clients; the half-way model is measured, or the last one."""
    local = LocalTraining(epochs=3, lr=0.05, vectorize=vectorize)
    some: dict[str, Any] = {"sampler": Uniform(), "cohort": 3, "evaluate_every": 1, "weighting": "uniform"}
    spy = Spy(monkeypatch)
    made = squares(tmp_path / "half.h5", SquaresFedExP(0.05, 0.7), 5, local, **some)
    halfway, sizes = paper(made, 0.05, 0.05, 0.7)
    assert max(sizes) > 1.3
    np.testing.assert_allclose(made.rounds["extrapolation"], sizes, rtol=1e-4)
    np.testing.assert_allclose(spy.measured[-1][0].numpy(), halfway, rtol=1e-5)
    last = squares(tmp_path / "last.h5", SquaresFedExP(0.05, 0.7, average=False), 5, local, **some)
    assert last.weights_sha256 == made.weights_sha256
    np.testing.assert_array_equal(spy.measured[-1][0].numpy(), last.weights)
    assert np.abs(last.weights - halfway).max() > 1e-3


def test_epsilon_must_suit_the_changes(tmp_path: Path) -> None:
    """Oracle: FedAvg's fixed point, which FedAvg reaches; there a small epsilon makes steps of many changes."""
    local = LocalTraining(epochs=5, lr=0.05)
    fixed = limit((5,) * CLIENTS, 0.05)
    plain = squares(tmp_path / "plain.h5", SquaresFedAvg(), 60, local)
    assert np.linalg.norm(plain.weights - fixed) < 1e-3
    made = squares(tmp_path / "made.h5", SquaresFedExP(1e-6), 60, local)
    assert made.rounds["extrapolation"].max() > 100


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_a_large_epsilon_is_fedavg(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit and byte for byte; with one client any epsilon; with others something else."""
    local = LocalTraining(epochs=1, lr=0.05, momentum=0.5, vectorize=vectorize)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(150), "partition": Dirichlet(0.1), "local": local}
    made, plain, some = (
        run(tmp_path / f"{number}.h5", one, rounds=2, **settings)
        for number, one in enumerate((FedExP(1e30, average=False), FedAvg(), FedExP(1e-9)))
    )
    assert made.weights_sha256 == plain.weights_sha256 != some.weights_sha256
    for column in ("train_loss", "test_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert (some.rounds["extrapolation"] > 1).any()
    one, alone = (
        run(tmp_path / f"{type(each).__name__}.h5", each, clients=1, rounds=2) for each in (FedExP(1e-9), FedAvg())
    )
    assert one.weights_sha256 == alone.weights_sha256
    assert one.rounds["extrapolation"].tolist() == [1, 1]


def test_statistics_are_averaged_plainly(tmp_path: Path) -> None:
    """Oracle: FedAvg's running statistics after one round; its parameters differ."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(150), "partition": Dirichlet(0.1)}
    algorithm = FedExP(1e-9)
    made, plain = run(tmp_path / "made.h5", algorithm, **settings), run(tmp_path / "plain.h5", **settings)
    assert made.rounds["extrapolation"][0] > 1
    for name, tensor in made.state_dict().items():
        assert np.array_equal(tensor, plain.state_dict()[name]) == ("running" in name), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--algorithm.epsilon 0", "--algorithm.epsilon = 0.0: must be above 0"),
        (
            "--server_optimizer Adam",
            "--server_optimizer = Adam: must be Replace with FedExP, which has its own server update",
        ),
        (
            "--privacy CentralDP --weighting uniform",
            "--algorithm = FedExP: must be a method whose server sees only one mean of models, with CentralDP",
        ),
    ],
)
def test_bad_options(arguments: str, message: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", "FedExP", *arguments.split()])
    assert str(error.value) == message
