"""Ditto: FedAvg beside it untouched, personal models as in plain PyTorch, the closed form on least squares."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi.algorithms.ditto import Ditto
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, LeNet, Model
from fedmpi.policies import RoundRobin
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import (
    CLIENTS,
    DIMENSION,
    EACH,
    InOrder,
    OneVector,
    Regression,
    SquaresDitto,
    SquaresFedAvg,
)
from tests.support.digits import DIGITS, SHAPE, Few, in_order
from tests.support.experiments import CPU, network, normalised, plain_partly_shared, plain_training, read, run


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize(
    ("model", "local"),
    [
        (LeNet(), {"epochs": 2, "momentum": 0.9, "clip_norm": 5.0}),
        (MLP((33,)), {"epochs": 1}),
        (CifarCNN(dropout=0.5), {"epochs": 1, "lr": 0.01, "augmentation": "flip"}),
    ],
)
def test_the_global_model_is_fedavgs(model: Model, local: dict[str, Any], vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, in weights, accuracies and bytes."""
    settings: dict[str, Any] = {
        "model": model,
        "dataset": Few(120),
        "rounds": 2,
        "local": LocalTraining(**local, vectorize=vectorize),
    }
    made, plain = run(tmp_path / "ditto.h5", Ditto(), **settings), run(tmp_path / "plain.h5", **settings)
    assert made.weights_sha256 == plain.weights_sha256
    np.testing.assert_array_equal(made.rounds["global_accuracy"], plain.rounds["test_accuracy"])
    for column in ("bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert made.rounds["test_loss"][-1] != plain.rounds["test_loss"][-1]
    np.testing.assert_array_equal(made.clients["steps"], 2 * plain.clients["steps"])


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [MLP((33,)), LeNet()])
@pytest.mark.parametrize(("pull", "lr"), [(0.0, None), (0.5, None), (0.5, 0.005)])
def test_personal_models_in_plain_pytorch(
    model: Model, pull: float, lr: float | None, vectorize: Any, tmp_path: Path
) -> None:
    """Oracle: torch.optim.SGD with the pull in its loss, an optimizer and batches of its own; without it, alone.

    Over three rounds of two clients; to 1e-4 of the way.
    """
    settings = {"batch_size": 10, "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-2}
    local = LocalTraining(**settings, epochs=2, vectorize=vectorize)  # type: ignore[arg-type]  # all of them floats
    algorithm = Ditto(pull, epochs=1, lr=lr)
    made = in_order(tmp_path / "run.h5", algorithm, model, 2, local)
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    personal = [network(model, SHAPE, 10) for _ in range(2)]
    once = LocalTraining(**settings | {"lr": lr or 0.02}, epochs=1)  # type: ignore[arg-type]

    def train(module: nn.Module, client: int, round: int) -> None:
        """Both trainings of a client in a round; `module` holds what it received."""
        mine, own = slice(30 * client, 30 * client + 30), personal[client]
        received = [parameter.detach().clone() for parameter in module.parameters()]

        def pulled(logits: Tensor, labels: Tensor) -> Tensor:
            apart = sum((v - w).square().sum() for v, w in zip(own.parameters(), received, strict=True))
            return nn.functional.cross_entropy(logits, labels) + pull / 2 * apart

        plain_training(module, x[mine], y[mine], local, client, round)
        plain_training(own, x[mine], y[mine], once, client, round, pulled, phase="personal")

    plain_partly_shared(network(model, SHAPE, 10), (), 2, 3, train)
    start = FlatModel(network(model, SHAPE, 10), CPU).weights[0]
    for client, module in enumerate(personal):
        expected = FlatModel(copy.deepcopy(module), CPU).weights[0]
        row, way = algorithm.personal.rows[client], (expected - start).norm()
        assert way > (0.05 if lr else 0.1)
        assert (row - expected).norm() < 1e-4 * way
    assert not torch.equal(algorithm.personal.rows[0], algorithm.personal.rows[1])
    assert set(made.clients["steps"]) == {3 * 3}


def squares(path: Path, pull: float, lr: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[clients, dimension] personal models after two rounds on least squares, and [dimension] the received one."""
    local = LocalTraining(batch_size=EACH, epochs=100, lr=lr, vectorize=CLIENTS)
    settings: dict[str, Any] = {
        "dataset": Regression(),
        "partition": InOrder(),
        "model": OneVector(),
        "clients": CLIENTS,
        "local": local,
        "evaluate_every": 0,
    }
    algorithm = SquaresDitto(pull)
    run(path / "ditto.h5", algorithm, **settings, rounds=2)
    received = run(path / "plain.h5", SquaresFedAvg(), **settings).weights
    rows = torch.stack([algorithm.personal.rows[client] for client in range(CLIENTS)])
    return rows.double().numpy(), received.astype(np.float64)


@pytest.mark.parametrize(("pull", "lr"), [(0.5, 0.3), (5.0, 0.15)])
def test_closed_form(pull: float, lr: float, tmp_path: Path) -> None:
    """Oracle: (A + pull I) v = A'b + pull w of each client, with w the model that it received in round 2."""
    samples = read(Regression()).train_x.astype(np.float64).reshape(CLIENTS, EACH, DIMENSION + 1)
    personal, received = squares(tmp_path, pull, lr)
    for equations, found in zip(samples, personal, strict=True):
        a, b = equations[:, :-1], equations[:, -1]
        matrix = a.T @ a / EACH + pull * np.eye(DIMENSION)
        solution = np.linalg.solve(matrix, a.T @ b / EACH + pull * received)
        np.testing.assert_allclose(found, solution, rtol=2e-5, atol=2e-5)


def test_a_strong_pull_leaves_the_global_model(tmp_path: Path) -> None:
    """Oracle: the model received in round 2: the stronger the pull, the nearer, as pull / (pull + A) has it."""
    apart = []
    for pull in (0.0, 1.0, 4.0, 15.0):
        (tmp_path / f"{pull}").mkdir()
        personal, received = squares(tmp_path / f"{pull}", pull, 0.1)
        apart.append(float(np.linalg.norm(personal - received)))
    assert all(near < 0.7 * far for far, near in pairwise(apart))
    assert apart[-1] < 0.15 * apart[0]


def test_who_never_came_has_the_first_model(tmp_path: Path) -> None:
    """Oracle: by hand: of 8 clients two a round in turn; accuracies of the others are those of the first model."""
    made = run(tmp_path / "run.h5", Ditto(), clients=8, cohort=2, rounds=3, sampler=RoundRobin())
    assert made.rounds["clients_trained"].tolist() == [2, 4, 6]
    first = run(tmp_path / "first.h5", clients=8, rounds=1, local=LocalTraining(epochs=1, lr=1e-12))
    np.testing.assert_array_equal(
        made.evaluation["client_accuracy"][-1][6:], first.evaluation["client_accuracy"][0][6:]
    )
    assert made.initial["test_accuracy"] == first.initial["test_accuracy"]
    assert (made.evaluation["client_accuracy"][-1] != first.evaluation["client_accuracy"][0])[:6].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull": -0.1}, "pull = -0.1: must be at least 0"),
        ({"pull": float("nan")}, "pull = nan: must be at least 0"),
        ({"epochs": 0}, "epochs = 0: must be at least 1"),
        ({"lr": 0}, "lr = 0.0: must be above 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        Ditto(**options)
