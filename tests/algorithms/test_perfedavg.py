"""Per-FedAvg: FedAvg without its personal step, steps by hand, closed forms on least squares, what is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.perfedavg import PerFedAvg
from fedmpi.errors import BadInput
from fedmpi.federation.evaluation import Evaluation
from fedmpi.federation.federation import Federation
from fedmpi.federation.reports import Personal
from fedmpi.models import MLP, LeNet, Model
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, HalfSquares, Residual
from tests.support.digits import SHAPE, in_order
from tests.support.experiments import CPU, Client, network, run
from tests.support.least_squares import HESSIANS, START, gradient, squares

Variant = Literal["FO", "HF"]
VARIANTS: list[Variant] = ["FO", "HF"]


class SquaresPerFedAvg(HalfSquares, PerFedAvg):
    """Per-FedAvg on least squares."""


def one_step(a: float, b: float, algorithm: PerFedAvg, lr: float) -> float:
    """Where a step leads from 0, for the loss a (w - b)^2 / 2."""
    module = Residual(1)
    module.vector.data.zero_()
    x = np.array([[np.sqrt(a), np.sqrt(a) * b]], np.float32)
    one = Client(module, x, np.zeros(1, np.int64), LocalTraining(steps=1, lr=lr))
    return one.train(algorithm).weights.item()


@pytest.mark.parametrize(("variant", "expected"), [("FO", 0.45), ("HF", 0.405)])
def test_a_step_by_hand(variant: Variant, expected: float) -> None:
    """Oracle: u = 0.1, v = -0.9, and H v = -0.9."""
    assert one_step(1, 1, SquaresPerFedAvg(0.1, variant), 0.5) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("delta", [1e-2, 1.0, 10.0])
@pytest.mark.parametrize(("variant", "power"), [("FO", 1), ("HF", 2)])
def test_the_factor_of_a_parabola(variant: Variant, power: int, delta: float) -> None:
    """Oracle: a (1 - inner_lr a) for FO, and a (1 - inner_lr a)^2 for HF, whatever delta is."""
    found = one_step(3, 2, SquaresPerFedAvg(0.1, variant, delta), 0.5)
    assert found == pytest.approx(0.5 * 3 * (1 - 0.3) ** power * 2, rel=1e-4)


@pytest.mark.parametrize("vectorize", ["off", CLIENTS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_round_on_least_squares(variant: Variant, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: the mean of w - lr (I - alpha A)(A u - s), with u = w - alpha (A w - s); FO has no first factor."""
    alpha, lr = 0.2, 0.1
    algorithm = SquaresPerFedAvg(alpha, variant, 0.1)
    made = squares(tmp_path / "run.h5", algorithm, 1, LocalTraining(steps=1, lr=lr, vectorize=vectorize))
    ends = []
    for client in range(CLIENTS):
        step = gradient(client, START - alpha * gradient(client, START))
        factor = np.eye(DIMENSION) - alpha * HESSIANS[client] * (variant == "HF")
        ends.append(START - lr * factor @ step)
    np.testing.assert_allclose(made.weights, np.mean(ends, 0), rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vectorize", ["off", 3])
def test_without_a_personal_step_it_is_fedavg(variant: Variant, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, to 1e-5 of the way, where each batch has all samples of a client."""
    local = LocalTraining(epochs=4, batch_size=30, vectorize=vectorize)
    settings: dict[str, Any] = {"model": MLP((33,)), "clients": 5, "local": local}
    made = in_order(tmp_path / "run.h5", PerFedAvg(0.0, variant), **settings)
    plain = in_order(tmp_path / "plain.h5", FedAvg(), **settings)
    assert np.linalg.norm(made.weights - plain.weights) <= 1e-5 * way(MLP((33,)), plain.weights)
    assert made.clients["steps"].tolist() == plain.clients["steps"].tolist()
    assert made.rounds["global_accuracy"].tolist() == plain.rounds["test_accuracy"].tolist()


def way(model: Model, weights: Any) -> float:
    start = FlatModel(network(model, SHAPE, 10), CPU)
    return float(np.linalg.norm(weights - start.layout.canonical(start.weights[0]).numpy()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", [MLP((33, 17)), LeNet(norm="group")])
def test_side_by_side_as_one_by_one(model: Model, variant: Variant, tmp_path: Path) -> None:
    """Oracle: training one by one, to 1e-4 of the way, with batches of 8, 8, 8 and 6."""
    weights = []
    for vectorize in ("off", 3):
        local = LocalTraining(epochs=1, batch_size=8, vectorize=vectorize)
        algorithm = PerFedAvg(0.1, variant, 1e-2)
        weights.append(in_order(tmp_path / f"{vectorize}.h5", algorithm, model, 5, local).weights)
    assert np.linalg.norm(weights[1] - weights[0]) <= 1e-4 * way(model, weights[0])


def test_personal_models_are_a_step_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: w - alpha (A_k w - s_k) for each client, before the first round, too; no steps are counted for it."""
    seen: list[tuple[Tensor, Tensor]] = []
    evaluate_clients = Federation.evaluate_clients

    def watched(fed: Federation, weights: Tensor, personal: Personal) -> Evaluation:
        models = [personal(fed.context.alone(client), weights)[0].clone() for client in range(CLIENTS)]
        seen.append((weights.clone(), torch.stack(models)))
        return evaluate_clients(fed, weights, personal)

    monkeypatch.setattr(Federation, "evaluate_clients", watched)
    local = LocalTraining(steps=1, lr=0.1)
    made = squares(tmp_path / "run.h5", SquaresPerFedAvg(0.3), 2, local, evaluate_every=1)
    assert len(seen) == 3
    for weights, models in seen:
        w = weights.double().numpy()
        for client, model in enumerate(models):
            np.testing.assert_allclose(model.numpy(), w - 0.3 * gradient(client, w), rtol=1e-5, atol=1e-5)
    assert set(made.clients["steps"]) == {1}


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_evaluation_leaves_no_trace(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: the same run without evaluations, bit for bit, with statistics."""
    weights = [
        run(tmp_path / f"{every}.h5", PerFedAvg(), model=LeNet(), rounds=2, evaluate_every=every, local=local).weights
        for every in (0, 1)
        for local in [LocalTraining(epochs=1, batch_size=100, vectorize=vectorize)]
    ]
    np.testing.assert_array_equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": -0.1}, "inner_lr = -0.1: must be at least 0"),
        ({"delta": 0.0}, "delta = 0.0: must be above 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        PerFedAvg(**options)
