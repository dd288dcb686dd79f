"""FedBABU: FedAvg without a head, plain PyTorch with a frozen head, and fine-tuning of head and body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.algorithms import fedbabu
from fedmpi.algorithms.fedbabu import FedBABU
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, LogisticRegression, Model
from fedmpi.policies.server_optimizers import Adam
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few, beside_fedavg, in_order
from tests.support.experiments import (
    network,
    normalised,
    plain_partly_shared,
    plain_training,
    run,
    state,
    tensors,
)


def heads(module: nn.Module) -> set[str]:
    """The names of the last two tensors: weight and bias of the last layer."""
    return set(list(dict(module.named_parameters()))[-2:])


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LogisticRegression(), LeNet()])
def test_without_a_head_it_is_fedavg(
    model: Model, vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: FedAvg, bit for bit."""

    def no_head(layout: Layout, method: str) -> tuple[slice, slice]:
        return slice(0, 0), slice(0, layout.size)

    monkeypatch.setattr(fedbabu, "head_and_body", no_head)
    made, plain = beside_fedavg(tmp_path, FedBABU(), model, vectorize)
    np.testing.assert_array_equal(made.rounds["test_loss"], plain.rounds["test_loss"])


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17)), MLP((16, 8), norm="batch")])
@pytest.mark.parametrize("clients", [1, 2])
def test_plain_pytorch(clients: int, model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks in PyTorch whose heads are frozen; one client is SGD on the body.

    Over three rounds, to 1e-4 of the way; the head stays, bit for bit. Weight decay and momentum would move what is
    frozen by gradients of zero.
    """
    options: dict[str, Any] = {"batch_size": 10, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}
    local = LocalTraining(**options, epochs=2, vectorize=vectorize)
    made = in_order(tmp_path / "run.h5", FedBABU(), model, clients, local)
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    start = network(model, SHAPE, 10)

    def train(module: nn.Module, client: int, round: int) -> None:
        mine = slice(30 * client, 30 * client + 30)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in heads(module))
        plain_training(module, x[mine], y[mine], local, client, round)

    _, server = plain_partly_shared(start, heads(start), clients, 3, train)
    for name, tensor in tensors(made).items():
        if name in heads(start):
            assert torch.equal(tensor, state(start)[name]), name
        else:
            way = (server[name] - state(start)[name]).norm()
            assert (tensor - server[name]).norm() <= 1e-4 * way + 1e-6, name
    shared = sum(tensor.numel() for name, tensor in state(start).items() if name not in heads(start))
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [4 * clients * shared] * 3


def test_a_server_optimizer_leaves_the_head(tmp_path: Path) -> None:
    """Oracle: bits."""
    made = run(tmp_path / "run.h5", FedBABU(), model=LeNet(), dataset=Few(120), rounds=3, server_optimizer=Adam())
    start = network(LeNet(), SHAPE, 10)
    assert all(torch.equal(tensors(made)[name], state(start)[name]) for name in heads(start))


def test_fine_tuning_trains_head_and_body(tmp_path: Path) -> None:
    """Oracle: plain PyTorch, from the model at the end; the client's test samples are the whole test set."""
    local = LocalTraining(batch_size=10, lr=0.05, epochs=1)
    settings: dict[str, Any] = {"model": LeNet(), "dataset": Few(30), "clients": 1, "rounds": 3, "local": local}
    made = run(tmp_path / "run.h5", FedBABU(), **settings, evaluate_fine_tuned=4)
    module = network(LeNet(), SHAPE, 10)
    module.load_state_dict(tensors(made), strict=False)
    x, y = (normalised(DIGITS.train_x[:30], Digits()), torch.from_numpy(DIGITS.train_y[:30]))
    test_x, test_y = normalised(DIGITS.test_x, Digits()), torch.from_numpy(DIGITS.test_y)

    def accuracy() -> float:
        with torch.no_grad():
            return float((module.eval()(test_x).argmax(1) == test_y).double().mean())

    assert made.rounds["test_accuracy"][-1] == pytest.approx(accuracy(), abs=1e-6)
    before = {name: state(module)[name].clone() for name in heads(module)}
    tuning = LocalTraining(batch_size=10, lr=0.05, epochs=4)
    plain_training(module, x, y, tuning, round=3, phase="fine-tuning ")
    assert all(not torch.equal(state(module)[name], tensor) for name, tensor in before.items())
    assert made.rounds["fine_tuned_accuracy"][-1] == pytest.approx(accuracy(), abs=3e-3)
    assert made.rounds["fine_tuned_accuracy"][-1] > made.rounds["test_accuracy"][-1] + 0.02


def test_nothing_to_train(tmp_path: Path) -> None:
    """Oracle: one line that names the method."""
    message = "--model: FedBABU needs a fully connected layer that is trained, and other trained layers"
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "run.h5", FedBABU(), model=LogisticRegression())
