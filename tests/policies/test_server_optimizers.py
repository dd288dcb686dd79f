"""The server's rules over several rounds, against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.policies.server_optimizers import Adagrad, Adam, Momentum, Replace, ServerOptimizer, Yogi
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_payload import METHODS
from tests.support.experiments import run, shortened

Vector = NDArray[np.float64]
PARAMETERS, SIZE, ROUNDS = 40, 50, 12
TAU = 1e-3


def drawn(seed: int = 0) -> tuple[Vector, list[Vector]]:
    """[P] a start, and as many targets [P] as rounds: around the start, of many magnitudes; float32 values."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(-6, 0, SIZE)
    start, *targets = rng.standard_normal((1 + ROUNDS, SIZE)).astype(np.float32)
    return start.astype(float), [(start + scale * target).astype(np.float32).astype(float) for target in targets]


def steps(rule: ServerOptimizer, start: Vector, means: list[Vector]) -> list[Vector]:
    """The models [P] after each round."""
    weights, models = torch.from_numpy(start).float(), []
    for mean in means:
        given = torch.from_numpy(mean).float()
        weights = rule.step(weights, given, PARAMETERS)
        assert torch.equal(weights[PARAMETERS:], given[PARAMETERS:]), "statistics are those of the mean"
        models.append(weights.double().numpy())
    return models


def momentum(delta: Vector, kept: dict[str, Vector], beta: float, dampening: float, nesterov: bool) -> Vector:
    kept["m"] = beta * kept.get("m", 0) + (1 - dampening) * delta
    return delta + beta * kept["m"] if nesterov else kept["m"]


def adaptive(
    delta: Vector, kept: dict[str, Vector], beta1: float, move: Callable[[Vector, Vector], Vector]
) -> Vector:
    kept["m"] = beta1 * kept.get("m", 0) + (1 - beta1) * delta
    kept["v"] = move(kept.get("v", np.full_like(delta, TAU**2)), delta**2)
    return kept["m"] / (np.sqrt(kept["v"]) + TAU)


def yogi(v: Vector, square: Vector) -> Vector:
    return v - 0.01 * square * np.sign(v - square)


Rule = Callable[[Vector, dict[str, Vector]], Vector]
RULES: dict[str, tuple[Callable[[], ServerOptimizer], float, Rule]] = {
    "momentum": (lambda: Momentum(), 1.0, lambda d, kept: momentum(d, kept, 0.9, 0, False)),
    "slow": (lambda: Momentum(0.3, 0.7), 0.3, lambda d, kept: momentum(d, kept, 0.7, 0, False)),
    "dampened": (lambda: Momentum(1.0, 0.9, 0.9), 1.0, lambda d, kept: momentum(d, kept, 0.9, 0.9, False)),
    "nesterov": (lambda: Momentum(0.5, nesterov=True), 0.5, lambda d, kept: momentum(d, kept, 0.9, 0, True)),
    "adagrad": (lambda: Adagrad(), 0.01, lambda d, kept: adaptive(d, kept, 0.0, lambda v, s: v + s)),
    "adam": (lambda: Adam(), 0.01, lambda d, kept: adaptive(d, kept, 0.9, lambda v, s: 0.99 * v + 0.01 * s)),
    "yogi": (lambda: Yogi(), 0.01, lambda d, kept: adaptive(d, kept, 0.9, yogi)),
}


@pytest.mark.parametrize("name", RULES)
def test_formulas(name: str) -> None:
    """Oracle: the formulas in float64 over 12 rounds, fed with the same differences; to float32's digits."""
    make, lr, rule = RULES[name]
    start, means = drawn()
    kept: dict[str, Vector] = {}
    before, moved = start, 0.0
    for mean, after in zip(means, steps(make(), start, means), strict=True):
        expected = before[:PARAMETERS] + lr * rule((mean - before)[:PARAMETERS], kept)
        np.testing.assert_allclose(after[:PARAMETERS], expected, rtol=2e-5, atol=2e-7)
        moved += np.abs(after - before)[:PARAMETERS].min()
        before = after
    assert moved > 0


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_first_round(name: str) -> None:
    """Oracle: lr (1 - beta1) delta / (sqrt(v) + tau) with the first v; at defaults about lr sign(delta)."""
    start, means = drawn()
    delta = (means[0] - start)[:PARAMETERS]
    (after,) = steps(RULES[name][0](), start, means[:1])
    v, square = TAU**2, delta**2
    first, beta1 = {
        "adagrad": (v + square, 0.0),
        "adam": (0.99 * v + 0.01 * square, 0.9),
        "yogi": (np.where(square > v, v + 0.01 * square, v - 0.01 * square), 0.9),
    }[name]
    way = (after - start)[:PARAMETERS]
    np.testing.assert_allclose(way, 0.01 * (1 - beta1) * delta / (np.sqrt(first) + TAU), rtol=1e-5, atol=2e-7)
    large = np.abs(delta) > 0.05
    assert large.any()
    np.testing.assert_allclose(way[large], 0.01 * np.sign(delta[large]), rtol=0.25)


def test_constant_differences() -> None:
    """Oracle: delta (sum of (1 - beta^i) / (1 - beta)) after t rounds, to float32's digits."""
    weights, delta, rule = torch.zeros(8), torch.linspace(-1, 1, 8), Momentum(momentum=0.7)
    for round in range(1, 8):
        weights = rule.step(weights, weights + delta, 8)
        factor = sum((1 - 0.7**i) / (1 - 0.7) for i in range(1, round + 1))
        torch.testing.assert_close(weights, factor * delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [Replace(), Momentum(1.0, 0.0), Momentum(1.0, 0.0, nesterov=True)])
def test_without_memory_it_is_the_mean(rule: ServerOptimizer) -> None:
    """Oracle: the mean itself, bit for bit, where adding the difference would round."""
    start, means = drawn()
    rounded = [np.float32(start) + (np.float32(mean) - np.float32(start)) != np.float32(mean) for mean in means]
    assert np.any(rounded)
    for mean, after in zip(means, steps(rule, start, means), strict=True):
        np.testing.assert_array_equal(after, mean)


@pytest.mark.parametrize("name", RULES)
def test_elsewhere_it_costs_nothing(name: str) -> None:
    """Oracle: the meta device, on which the same calls give a model of the same shape, and a state without memory."""
    rule, nothing = RULES[name][0](), torch.empty(SIZE, device="meta")
    weights = rule.step(rule.step(nothing, nothing, PARAMETERS), nothing, PARAMETERS)
    assert (weights.shape, weights.device.type) == ((SIZE,), "meta")
    assert {(tensor.shape, tensor.device.type) for tensor in rule.state.values()} == {((PARAMETERS,), "meta")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(0.0), "lr = 0.0: must be above 0"),
        (lambda: Momentum(momentum=1.0), "momentum = 1.0: must be at least 0 and below 1"),
        (lambda: Momentum(dampening=1.0), "dampening = 1.0: must be at least 0 and below 1"),
        (lambda: Adam(lr=float("nan")), "lr = nan: must be above 0"),
        (lambda: Adagrad(beta1=-0.1), "beta1 = -0.1: must be at least 0 and below 1"),
        (lambda: Adam(beta2=1.0), "beta2 = 1.0: must be at least 0 and below 1"),
        (lambda: Yogi(beta2=-1.0), "beta2 = -1.0: must be at least 0 and below 1"),
        (lambda: Yogi(tau=0.0), "tau = 0.0: must be above 0"),
    ],
)
def test_values_that_cannot_be(make: Callable[[], ServerOptimizer], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.takes_server_optimizer], ids=lambda method: method.__name__
)
def test_methods_that_say_so_call_it(method: type[Algorithm], tmp_path: Path) -> None:
    """Oracle: no round changes the model without it, which would be refused."""
    chosen: dict[str, Any] = {"model": LeNet(), "local": LocalTraining(steps=1), "rounds": 3, "clients": 7}
    run(tmp_path / "run.h5", shortened(method), server_optimizer=Momentum(0.5), evaluate_every=3, **chosen)
