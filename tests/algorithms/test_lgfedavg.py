"""LG-FedAvg: FedAvg without a body, plain PyTorch with bodies that stay, and the model of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedper import FedPer
from fedmpi.algorithms.lgfedavg import LGFedAvg
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, LogisticRegression, Model
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Layout
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


class NoBody(LGFedAvg):
    """LG-FedAvg that keeps nothing."""

    def split(self, layout: Layout) -> tuple[slice, slice]:
        return slice(0, 0), slice(0, layout.size)


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LogisticRegression(), LeNet()])
def test_without_a_body_it_is_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit."""
    beside_fedavg(tmp_path, NoBody(), model, vectorize)


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
@pytest.mark.parametrize("clients", [1, 2])
def test_plain_pytorch(clients: int, model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks in PyTorch that keep all but the last layer; one client is plain SGD.

    Over three rounds, to 1e-4 of the way; the server's body stays, bit for bit, and the clients' bodies differ.
    """
    local = LocalTraining(epochs=2, batch_size=10, lr=0.02, momentum=0.9, weight_decay=0.05, vectorize=vectorize)
    algorithm = LGFedAvg()
    made = in_order(tmp_path / "run.h5", algorithm, model, clients, local)
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    start = network(model, SHAPE, 10)
    bodies = state(start).keys() - list(dict(start.named_parameters()))[-2:]

    def train(module: nn.Module, client: int, round: int) -> None:
        mine = slice(30 * client, 30 * client + 30)
        plain_training(module, x[mine], y[mine], local, client, round)

    networks, server = plain_partly_shared(start, bodies, clients, 3, train)
    for name, tensor in tensors(made).items():
        if name in bodies:
            assert torch.equal(tensor, state(start)[name]), name
        else:
            way = (server[name] - state(start)[name]).norm()
            assert (tensor - server[name]).norm() <= 1e-4 * way, name
    first = FlatModel(network(model, SHAPE, 10), CPU).weights[0, algorithm.own]
    for client, module in enumerate(networks):
        kept, expected = algorithm.kept.rows[client], FlatModel(module, CPU).weights[0, algorithm.own]
        assert (kept - expected).norm() <= 1e-4 * (expected - first).norm()
    if clients == 2:
        assert not torch.equal(algorithm.kept.rows[0], algorithm.kept.rows[1])


def test_what_fedper_keeps_is_sent(tmp_path: Path) -> None:
    """Oracle: the bytes of FedPer and of LG-FedAvg are together those of FedAvg."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(60)}
    runs = [run(tmp_path / f"{cls.__name__}.h5", cls(), **settings) for cls in (LGFedAvg, FedPer, FedAvg)]
    for column in ("bytes_up", "bytes_down"):
        some, others, all_of_it = (int(made.rounds[column][0]) for made in runs)
        assert some + others == all_of_it
    assert some == 4 * 4 * 610  # the last layer of LeNet, of four clients


def test_from_the_model_of_another_run(tmp_path: Path) -> None:
    """Oracle: the other run's last evaluation: clients' test samples are the whole test set together."""
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(120), "rounds": 2}
    first = run(tmp_path / "first.h5", FedAvg(), **settings)
    made = run(tmp_path / "made.h5", LGFedAvg(), **settings, init=first.path)
    assert made.initial["test_accuracy"] == first.rounds["test_accuracy"][-1]
    np.testing.assert_array_equal(made.rounds["clients_trained"], [4, 4])


def test_nothing_to_keep(tmp_path: Path) -> None:
    """Oracle: one line that names the method."""
    message = "--model: LGFedAvg needs a fully connected layer that is trained, and other trained layers"
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "run.h5", LGFedAvg(), model=LogisticRegression())
