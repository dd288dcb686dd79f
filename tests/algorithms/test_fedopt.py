"""FedAvg with a rule at the server, by name and as an option under other methods, in whole experiments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import results
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedopt import FedAvgM
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.errors import BadInput
from fedmpi.experiment.command_line import parse
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.policies.server_optimizers import Adam, Momentum
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.samples import Batch
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, EACH, InOrder, OneVector, Regression
from tests.support.experiments import CPU, Alone, network, read, run

if TYPE_CHECKING:
    from fedmpi.federation.federation import Federation

#: The rule of each method by name, as an option.
NAMED = {
    "FedAvgM": "Momentum --server_optimizer.momentum 0.8",
    "FedAdagrad": "Adagrad --server_optimizer.lr 0.05",
    "FedAdam": "Adam --server_optimizer.beta2 0.9",
    "FedYogi": "Yogi --server_optimizer.tau 0.01",
}


class Linear:
    """The residual itself for a loss: its gradient, the mean of a client's a, is the same everywhere."""

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return net(batch.x)[:, 0]


class LinearFedAvgM(Linear, FedAvgM):
    """FedAvgM on clients that always move alike."""


def test_equal_steps_add_up(tmp_path: Path) -> None:
    """Oracle: the closed form for equal differences over t rounds, the sum of (1 - beta^i) / (1 - beta)."""
    rounds, beta, lr = 6, 0.7, 0.01
    made = run(
        tmp_path / "run.h5",
        LinearFedAvgM(momentum=beta),
        dataset=Regression(),
        partition=InOrder(),
        model=OneVector(),
        clients=CLIENTS,
        rounds=rounds,
        evaluate_every=0,
        local=LocalTraining(epochs=1, batch_size=EACH, lr=lr),
    )
    difference = -lr * read(Regression()).train_x[:, :-1].astype(np.float64).mean(0)
    factor = sum((1 - beta**i) / (1 - beta) for i in range(1, rounds + 1))
    np.testing.assert_allclose(
        made.weights - np.arange(1.0, DIMENSION + 1), factor * difference, rtol=1e-3, atol=1e-6
    )


class Recording(FedProx):
    """Keeps the means that the server's rule is given."""

    def __init__(self, mu: float) -> None:
        super().__init__(mu)
        self.means: list[Tensor] = []

    def server_step(self, fed: Federation, mean: Tensor) -> None:
        self.means.append(mean.clone())
        super().server_step(fed, mean)


def test_adam_under_fedprox(tmp_path: Path) -> None:
    """Oracle: Adam's formula in float64, from the rounds' means; statistics are the last mean's, bit for bit."""
    method = Recording(0.1)
    settings: dict[str, Any] = {"model": LeNet(), "rounds": 3, "local": LocalTraining(epochs=1, batch_size=50)}
    made = run(tmp_path / "run.h5", method, server_optimizer=Adam(lr=0.01), **settings)
    model = FlatModel(network(LeNet(), (1, 8, 8), 10), CPU)
    start, layout = model.weights[0], model.layout
    trained = layout.parameters
    assert layout.size - trained == 96
    weights, first, second = start[:trained].double().numpy(), np.zeros(trained), np.full(trained, 1e-6)
    for mean in method.means:
        delta = mean[:trained].double().numpy() - weights
        first, second = 0.9 * first + 0.1 * delta, 0.99 * second + 0.01 * delta**2
        weights = weights + 0.01 * first / (np.sqrt(second) + 1e-3)
    last = method.weights
    assert torch.equal(last[trained:], method.means[-1][trained:])
    assert (last[trained:] != start[trained:]).all()
    np.testing.assert_allclose(last[:trained].numpy(), weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(layout.canonical(last).numpy(), made.weights)


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_momentum_it_is_fedavg(nesterov: bool, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit, with batch normalisation and part of the clients."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "rounds": 3,
        "clients": 6,
        "cohort": 3,
        "sampler": Uniform(),
        "local": LocalTraining(epochs=1, batch_size=50),
    }
    one = run(tmp_path / "one.h5", FedAvgM(momentum=0.0, nesterov=nesterov), **settings)
    plain = run(tmp_path / "plain.h5", FedAvg(), **settings)
    under = run(tmp_path / "under.h5", FedProx(0), server_optimizer=Momentum(momentum=0.0), **settings)
    assert one.weights_sha256 == plain.weights_sha256 == under.weights_sha256
    for column in ("test_loss", "train_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(one.rounds[column], plain.rounds[column])


@pytest.mark.parametrize("name", [*NAMED, "IFCA", "LocalOnly"])
def test_a_rule_beside_another_is_refused(name: str) -> None:
    """Oracle: the message, one line."""
    with pytest.raises(BadInput) as error:
        parse(["--algorithm", name, "--server_optimizer", "Adam"])
    assert (
        str(error.value) == f"--server_optimizer = Adam: must be Replace with {name}, which has its own server update"
    )


def test_names_and_options(tmp_path: Path) -> None:
    """Oracle: a method by name is FedAvg with the option, bit for bit."""
    small = "--clients 8 --cohort 4 --rounds 3 --local.epochs 1 --local.batch_size 50 --model LeNet"
    lines = {"FedProxAdam": f"--algorithm FedProx --algorithm.mu 0 --server_optimizer {NAMED['FedAdam']} {small}"}
    for name, rule in NAMED.items():
        _, *options = rule.split()
        lines[name] = f"--algorithm {name} {' '.join(options).replace('server_optimizer', 'algorithm')} {small}"
        lines[f"{name}-option"] = f"--server_optimizer {rule} {small}"
    made = {}
    for name, line in lines.items():
        path = tmp_path / f"{name}.h5"
        experiment, config = parse([*line.split(), "--output", str(path)])
        experiment.run(Alone(), config)
        made[name] = results.open(path).weights_sha256
    for name in NAMED:
        assert made[name] == made[f"{name}-option"]
    assert made["FedProxAdam"] == made["FedAdam"]
    assert len({made[name] for name in NAMED}) == len(NAMED)
