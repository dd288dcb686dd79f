"""FedSAM: FedAvg without its ascent, steps by hand on parabolas, the papers' rules in plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedsam import FedSAM
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, LeNet, Model
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import HalfSquares, Residual
from tests.support.digits import DIGITS, EACH, SHAPE, beside_fedavg, in_order
from tests.support.experiments import CPU, Client, network, normalised, order, plain_batches, run, tensors


class SquaresFedSAM(HalfSquares, FedSAM):
    """FedSAM on least squares."""

    scaled: list[slice] = []  # noqa: RUF012  # by `setup`, which a client alone does not call


def parabola(curvatures: list[float], at: list[float], rho: float, steps: int) -> list[float]:
    """Where steps of 0.1 lead from a point, for the loss sum_i a_i w_i^2 / 2."""
    count = len(curvatures)
    module = Residual(count)
    module.vector.data = torch.tensor(at, dtype=torch.float32)
    rows = np.concatenate([np.diag(np.sqrt(count * np.array(curvatures))), np.zeros((count, 1))], 1)
    x, y = rows.astype(np.float32), np.zeros(count, np.int64)
    one = Client(module, x, y, LocalTraining(steps=steps, batch_size=count, lr=0.1))
    trained: list[float] = one.train(SquaresFedSAM(rho)).weights[0].tolist()
    return trained


def test_steps_by_hand() -> None:
    """Oracle: w - eta a (w + rho sign w); and g = (3, 4), e = (0.06, 0.08), so the gradient there is (3.06, 4.32)."""
    assert parabola([2], [0.5], 0.1, 1) == pytest.approx([0.38], rel=1e-6)
    assert parabola([1, 4], [3, 1], 0.1, 1) == pytest.approx([3 - 0.306, 1 - 0.432], rel=1e-6)


def test_it_stays_away_from_the_bottom() -> None:
    """Oracle: |w| = eta a rho / (2 - eta a), with changing signs; the gradient alone ends at 0."""
    assert abs(parabola([2], [0.5], 0.1, 400)[0]) == pytest.approx(0.1 * 2 * 0.1 / (2 - 0.2), rel=1e-4)
    assert abs(parabola([2], [0.5], 0.0, 400)[0]) < 1e-6


@pytest.mark.parametrize("rho", [0.05, 0.0])
def test_without_a_gradient_there_is_no_ascent(rho: float) -> None:
    """Oracle: the same point, and no NaN, where the gradient is zero."""
    assert parabola([2, 1], [0, 0], rho, 3) == [0, 0]


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [LeNet(), CifarCNN()])
def test_without_ascent_it_is_fedavg(model: Model, vectorize: Literal["off"] | int, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit."""
    beside_fedavg(tmp_path, FedSAM(0.0), model, vectorize)


def ascent(module: nn.Module, gradients: list[Tensor], rho: float, eta: float | None) -> list[Tensor]:
    """The papers' e, tensor by tensor."""
    named = list(module.named_parameters())
    scales = [p.detach().abs() + eta if eta is not None and "weight" in n else torch.ones_like(p) for n, p in named]
    norm = torch.cat([(t * g).flatten() for t, g in zip(scales, gradients, strict=True)]).norm()
    return [rho * t * t * g / norm for t, g in zip(scales, gradients, strict=True)]


@pytest.mark.parametrize("model", [MLP((33,)), LeNet()])
@pytest.mark.parametrize("eta", [None, 0.2])
def test_the_papers_rules_in_plain_pytorch(model: Model, eta: float | None, tmp_path: Path) -> None:
    """Oracle: torch.optim.SGD with momentum and decay at w, and the same batch's gradient at w + e; 1e-3 of the way.

    Running statistics are those of the first pass.
    """
    local = LocalTraining(batch_size=12, epochs=2, lr=0.02, momentum=0.9, weight_decay=1e-2)
    algorithm = FedSAM(0.5) if eta is None else FedSAM(0.5, adaptive=True, eta=eta)
    made = in_order(tmp_path / "run.h5", algorithm, model, 1, local)
    module = network(model, SHAPE, 10)
    start = FlatModel(copy.deepcopy(module), CPU).weights[0].clone()
    x, y = normalised(DIGITS.train_x[:EACH], Digits()), torch.from_numpy(DIGITS.train_y[:EACH])
    for round in (1, 2, 3):
        optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9, weight_decay=1e-2)
        for epoch in range(2):
            for chosen in plain_batches(order(epoch, round, 0, EACH), 12, False):
                first = gradients(module, x[chosen], y[chosen])
                other = copy.deepcopy(module)
                for parameter, e in zip(other.parameters(), ascent(module, first, 0.5, eta), strict=True):
                    parameter.data += e
                for parameter, g in zip(module.parameters(), gradients(other, x[chosen], y[chosen]), strict=True):
                    parameter.grad = g
                optimizer.step()
    expected, found = FlatModel(module, CPU), copy.deepcopy(module)
    found.load_state_dict(tensors(made), strict=False)
    way = (expected.weights[0] - start).norm()
    assert (FlatModel(found, CPU).weights[0] - expected.weights[0]).norm() <= 1e-3 * way


def gradients(module: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(nn.functional.cross_entropy(module(x), y), list(module.parameters())))


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_statistics_are_those_of_the_first_pass(vectorize: Literal["off"] | int, tmp_path: Path) -> None:
    """Oracle: FedAvg after one step, bit for bit, in running means and variances, but not in weights.

    The gradients of biases before batch normalisation are rounding errors, so these may be equal or not.
    """
    settings: dict[str, Any] = {"model": LeNet(), "local": LocalTraining(steps=1, vectorize=vectorize)}
    plain, sharp = run(tmp_path / "plain.h5", FedAvg(), **settings), run(tmp_path / "sharp.h5", FedSAM(), **settings)
    first, second = tensors(plain), tensors(sharp)
    for name, tensor in first.items():
        if "bias" not in name:
            assert torch.equal(second[name], tensor) == ("running" in name), name


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("model", [MLP((33, 17)), LeNet(norm="group")])
def test_side_by_side_as_one_by_one(model: Model, adaptive: bool, tmp_path: Path) -> None:
    """Oracle: training one by one; 1e-4 of the way."""
    weights = []
    for vectorize in ("off", 3):
        local = LocalTraining(epochs=1, batch_size=8, vectorize=vectorize)
        weights.append(in_order(tmp_path / f"{vectorize}.h5", FedSAM(0.2, adaptive), model, 5, local).weights)
    start = FlatModel(network(model, SHAPE, 10), CPU)
    way = np.linalg.norm(weights[0] - start.layout.canonical(start.weights[0]).numpy())
    assert np.linalg.norm(weights[1] - weights[0]) <= 1e-4 * way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho = -0.1: must be at least 0"),
        ({"rho": float("inf")}, "rho = inf: must be at least 0"),
        ({"eta": -1.0}, "eta = -1.0: must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        FedSAM(**options)
