"""FedBN: FedAvg where nothing is normalised, and plain PyTorch with normalisation layers of each client's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.algorithms.fedbn import FedBN
from fedmpi.data import Digits
from fedmpi.models import MLP, Backbone, LeNet, Model
from fedmpi.models._layers import ResidualBlock
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few, beside_fedavg, in_order
from tests.support.experiments import (
    CPU,
    network,
    normalised,
    plain_partly_shared,
    plain_training,
    run,
    state,
    tensors,
)


class Residual(Model):
    """A block of a ResNet, whose shortcut is normalised under the name of `shortcut.1`."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        extractor = nn.Sequential(ResidualBlock(shape[0], 8, 2, "batch", 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Backbone(extractor, nn.Linear(8, classes))


def normalisations(module: nn.Module) -> set[str]:
    """The names of all floating-point tensors of batch or group normalisation layers."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
    layers = {name for name, layer in module.named_modules() if isinstance(layer, kinds)}
    return {name for name in state(module) if name.rpartition(".")[0] in layers}


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LogisticRegression(), LeNet(norm="none")])
def test_without_normalisation_it_is_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit; the models measured are then the same, too."""
    made, plain = beside_fedavg(tmp_path, FedBN(), model, vectorize)
    np.testing.assert_array_equal(made.rounds["test_accuracy"], plain.rounds["test_accuracy"])
    np.testing.assert_allclose(made.rounds["test_loss"], plain.rounds["test_loss"], rtol=1e-5)


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [LeNet(), MLP((16,), norm="batch"), LeNet(norm="group"), Residual()])
def test_plain_pytorch(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: three networks in PyTorch that keep their normalisation and share the rest; to 1e-4 of the way.

    The server's normalisation stays as it was, bit for bit, that of shortcuts included.
    """
    local = LocalTraining(epochs=1, batch_size=10, lr=0.05, momentum=0.9, weight_decay=1e-3, vectorize=vectorize)
    algorithm = FedBN()
    made = in_order(tmp_path / "run.h5", algorithm, model, 3, local)
    x, y = normalised(DIGITS.train_x[:90], Digits()), torch.from_numpy(DIGITS.train_y[:90])
    start = network(model, SHAPE, 10)
    own = normalisations(start)
    assert own

    def train(module: nn.Module, client: int, round: int) -> None:
        mine = slice(30 * client, 30 * client + 30)
        plain_training(module, x[mine], y[mine], local, client, round)

    networks, server = plain_partly_shared(start, own, 3, 3, train)
    for name, tensor in tensors(made).items():
        if name in own:
            assert torch.equal(tensor, state(start)[name]), name
        else:
            way = (server[name] - state(start)[name]).norm()
            assert way > 0, name
            assert (tensor - server[name]).norm() <= 1e-4 * way + 1e-6, name
    for client, module in enumerate(networks):
        kept, expected = algorithm.kept.rows[client], FlatModel(module, CPU).weights[0, algorithm.own]
        way = (expected - FlatModel(network(model, SHAPE, 10), CPU).weights[0, algorithm.own]).norm()
        assert (kept - expected).norm() <= 1e-4 * way
        assert not torch.equal(kept, algorithm.kept.rows[(client + 1) % 3])
    shared = sum(tensor.numel() for name, tensor in state(start).items() if name not in own)
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [4 * 3 * shared] * 3


def test_the_servers_optimizer_moves_what_is_shared(tmp_path: Path) -> None:
    """Oracle: with momentum 0 FedBN without it, bit for bit; with more, the server's normalisation stays."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(120), "rounds": 3}
    plain, none, some = (
        run(tmp_path / f"{number}.h5", FedBN(), **settings, **optimizer)
        for number, optimizer in enumerate(
            ({}, {"server_optimizer": Momentum(momentum=0)}, {"server_optimizer": Momentum(momentum=0.9)})
        )
    )
    assert plain.weights_sha256 == none.weights_sha256 != some.weights_sha256
    start = network(LeNet(), SHAPE, 10)
    for name, tensor in tensors(some).items():
        assert torch.equal(tensor, state(start)[name]) == (name in normalisations(start)), name
