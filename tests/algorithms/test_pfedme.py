"""pFedMe: FedAvg in its limit, Moreau envelopes by hand and in closed form, the algorithm in plain PyTorch."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.pfedme import pFedMe
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, Model
from fedmpi.policies import RoundRobin
from fedmpi.training.block import Work
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, HalfSquares, InOrder, Residual
from tests.support.digits import DIGITS, EACH, SHAPE, Few, in_order
from tests.support.experiments import CPU, Client, network, normalised, order, plain_batches, run
from tests.support.least_squares import HESSIANS, SIDES, START, squares


class SquaresPFedMe(HalfSquares, pFedMe):
    """pFedMe on least squares."""


def envelope(inner_steps: int, inner_lr: float, start: float = 0.0) -> Work:
    """A step with lr 0.1 and pull 15 on (v - 1)^2 / 2."""
    module = Residual(1)
    module.vector.data.fill_(start)
    one = Client(module, np.ones((1, 2), np.float32), np.zeros(1, np.int64), LocalTraining(steps=1, lr=0.1))
    return one.train(SquaresPFedMe(15, inner_steps, inner_lr), personal=one.start.clone())


def test_an_envelope_by_hand() -> None:
    """Oracle: v = 1/16 and w = 0.09375 after an exact inner step; after two of 0.1, 0.36 of the way is left."""
    exact = envelope(1, 1 / 16)
    assert exact.rows["personal"].item() == pytest.approx(1 / 16, rel=1e-6)
    assert exact.weights.item() == pytest.approx(0.09375, rel=1e-6)
    assert envelope(2, 0.1).rows["personal"].item() == pytest.approx((1 - 0.36) / 16, rel=1e-5)


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [MLP((33,)), LeNet()])
def test_one_exact_inner_step_is_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, to 1e-5 of the way, if lr = inner_lr = 1 / pull."""
    local = LocalTraining(epochs=1, batch_size=8, lr=1 / 16, vectorize=vectorize)
    made = in_order(tmp_path / "run.h5", pFedMe(16.0, 1, 1 / 16), model, 5, local)
    plain = in_order(tmp_path / "plain.h5", FedAvg(), model, 5, local)
    assert np.linalg.norm(made.weights - plain.weights) <= 1e-5 * way(model, plain.weights)


def way(model: Model, weights: Any) -> float:
    return float(np.linalg.norm(weights - canonical(model)))


def canonical(model: Model) -> Any:
    start = FlatModel(network(model, SHAPE, 10), CPU)
    return start.layout.canonical(start.weights[0]).numpy()


@pytest.mark.parametrize("vectorize", ["off", 3])
def test_without_pull_the_model_rests(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: the initial model, bit for bit, while personal models are trained."""
    model, algorithm = MLP((33,)), pFedMe(0.0, 2)
    local = LocalTraining(epochs=1, vectorize=vectorize)
    made = in_order(tmp_path / "run.h5", algorithm, model, 3, local)
    np.testing.assert_array_equal(made.weights, canonical(model))
    for row in algorithm.personal.rows.values():
        assert (row - FlatModel(network(model, SHAPE, 10), CPU).weights[0]).norm() > 0.1


@pytest.mark.parametrize("vectorize", ["off", CLIENTS])
def test_closed_form(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: v = (A + pull I)^-1 (s + pull w) of each client, and w - lr pull (w - v) in the mean."""
    pull, lr = 4.0, 0.1
    algorithm = SquaresPFedMe(pull, 300, 0.1)
    made = squares(tmp_path / "run.h5", algorithm, 1, LocalTraining(steps=1, lr=lr, vectorize=vectorize))
    ends = []
    for client in range(CLIENTS):
        v = np.linalg.solve(HESSIANS[client] + pull * np.eye(DIMENSION), SIDES[client] + pull * START)
        np.testing.assert_allclose(algorithm.personal.rows[client].numpy(), v, rtol=2e-5, atol=2e-5)
        ends.append(START - lr * pull * (START - v))
    np.testing.assert_allclose(made.weights, np.mean(ends, 0), rtol=2e-5)


def test_the_stronger_the_pull_the_nearer(tmp_path: Path) -> None:
    """Oracle: |v - w| falls as 1 / pull, as for the closed form."""
    apart = []
    for pull in (16.0, 32.0, 64.0):
        algorithm = SquaresPFedMe(pull, 100, 0.01)
        squares(tmp_path / f"{pull}.h5", algorithm, 1, LocalTraining(steps=1, lr=0.01))
        apart.append(np.linalg.norm(algorithm.personal.rows[0].numpy() - START))
    for far, near in pairwise(apart):
        assert 0.5 <= near / far < 0.6


def gradients(module: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(nn.functional.cross_entropy(module(x), y), list(module.parameters())))


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [MLP((33,)), LeNet()])
def test_the_algorithm_in_plain_pytorch(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: both loops in PyTorch, the outer one with momentum and decay; to 1e-3 of the way.

    One of two clients, in one round, with batches of 12, 12 and 6, twice. Statistics are those of the pass at w.
    """
    pull, inner_lr = 5.0, 0.05
    local = LocalTraining(batch_size=12, epochs=2, lr=0.04, momentum=0.5, weight_decay=1e-2, vectorize=vectorize)
    algorithm = pFedMe(pull, 3, inner_lr)
    settings: dict[str, Any] = {"dataset": Few(2 * EACH), "partition": InOrder(), "clients": 2}
    run(tmp_path / "run.h5", algorithm, model=model, local=local, **settings)
    x, y = normalised(DIGITS.train_x[:EACH], Digits()), torch.from_numpy(DIGITS.train_y[:EACH])
    start = FlatModel(network(model, SHAPE, 10), CPU).weights[0].clone()
    module = network(model, SHAPE, 10)
    optimizer = torch.optim.SGD(module.parameters(), 0.04, momentum=0.5, weight_decay=1e-2)
    personal = copy.deepcopy(module)
    for epoch in range(2):
        for chosen in plain_batches(order(epoch, 1, 0, EACH), 12, False):
            gradients(module, x[chosen], y[chosen])
            for _ in range(3):
                found = gradients(personal, x[chosen], y[chosen])
                for v, w, g in zip(personal.parameters(), module.parameters(), found, strict=True):
                    v.data -= inner_lr * (g + pull * (v.data - w.data))
            for v, w in zip(personal.parameters(), module.parameters(), strict=True):
                w.grad = pull * (w.data - v.data)
            optimizer.step()
    buffers = {name: buffer for name, buffer in module.state_dict().items() if "running" in name}
    personal.load_state_dict(buffers, strict=False)
    expected = FlatModel(personal, CPU).weights[0]
    assert (algorithm.personal.rows[0] - expected).norm() <= 1e-3 * (expected - start).norm()


def test_who_never_came_has_the_first_model(tmp_path: Path) -> None:
    """Oracle: by hand: of 8 clients two a round in turn; accuracies of the others are those of the first model."""
    made = run(tmp_path / "run.h5", pFedMe(5.0, 2), clients=8, cohort=2, rounds=3, sampler=RoundRobin())
    assert made.rounds["clients_trained"].tolist() == [2, 4, 6]
    first = run(tmp_path / "first.h5", clients=8, rounds=1, local=LocalTraining(epochs=1, lr=1e-12))
    own, initial = made.evaluation["client_accuracy"][-1], first.evaluation["client_accuracy"][0]
    np.testing.assert_array_equal(own[6:], initial[6:])
    assert (own != initial)[:6].any()


@pytest.mark.parametrize(
    ("options", "local", "message"),
    [
        ({"pull": 41.0}, {}, "pull = 41.0: must be below 40, for steps of --algorithm.inner_lr = 0.05"),
        ({"pull": 20.0}, {}, "pull = 20.0: must be below 20, for steps of --local.lr = 0.1"),
        ({}, {"optimizer": "adam"}, "--local.optimizer = adam: must be sgd with pFedMe"),
    ],
)
def test_settings_that_cannot_be(
    options: dict[str, Any], local: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "run.h5", pFedMe(**options), local=LocalTraining(epochs=1, **local))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull": -1.0}, "pull = -1.0: must be at least 0"),
        ({"inner_steps": 0}, "inner_steps = 0: must be at least 1"),
        ({"inner_lr": 0.0}, "inner_lr = 0.0: must be above 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        pFedMe(**options)
