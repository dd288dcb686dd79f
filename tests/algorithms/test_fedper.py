"""FedPer and FedRep: FedAvg without a head, plain SGD with one client, plain PyTorch, and parts that stay still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedper import FedPer, FedRep
from fedmpi.algorithms.partly_shared import PartlyShared
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Trained
from fedmpi.models import MLP, LeNet, McMahanCNN, Model
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import RoundRobin
from fedmpi.training.block import Block, Phase
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder, OneVector, Regression
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

HEAD_EPOCHS = 3


class NoHead(FedPer):
    """FedPer that keeps nothing."""

    def split(self, layout: Layout) -> tuple[slice, slice]:
        return slice(0, 0), slice(0, layout.size)


def heads(module: nn.Module) -> set[str]:
    """The names of the last two tensors: weight and bias of the last layer."""
    return set(list(dict(module.named_parameters()))[-2:])


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LogisticRegression(), LeNet()])
def test_without_a_head_it_is_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit."""
    beside_fedavg(tmp_path, NoHead(), model, vectorize)


def test_one_client_is_plain_training(tmp_path: Path) -> None:
    """Oracle: FedAvg with one client, which is plain SGD (A1), bit for bit: its head and the server's body."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "dataset": Few(60),
        "clients": 1,
        "rounds": 3,
        "local": LocalTraining(epochs=2, momentum=0.9),
    }
    algorithm = FedPer()
    made, plain = run(tmp_path / "per.h5", algorithm, **settings), run(tmp_path / "plain.h5", FedAvg(), **settings)
    head = algorithm.own  # without convolutions before it, so that the file's order is the vector's
    np.testing.assert_array_equal(algorithm.kept.rows[0].numpy(), plain.weights[head])
    np.testing.assert_array_equal(made.weights[algorithm.shared], plain.weights[algorithm.shared])
    for column in ("train_loss", "test_accuracy"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
@pytest.mark.parametrize(("method", "head_lr"), [(FedPer, None), (FedRep, None), (FedRep, 0.005)])
def test_plain_pytorch(
    method: type[PartlyShared], head_lr: float | None, model: Model, vectorize: Any, tmp_path: Path
) -> None:
    """Oracle: two networks in PyTorch that keep their heads; FedRep with an optimizer for each part in turn.

    Over three rounds, to 1e-4 of the way; the server's head stays, bit for bit. Weight decay and momentum would move
    what is frozen by gradients of zero.
    """
    options: dict[str, Any] = {"batch_size": 10, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}
    local = LocalTraining(**options, epochs=2, vectorize=vectorize)
    algorithm = FedRep(HEAD_EPOCHS, head_lr) if method is FedRep else FedPer()
    made = in_order(tmp_path / "run.h5", algorithm, model, 2, local)
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    start = network(model, SHAPE, 10)

    def train(module: nn.Module, client: int, round: int) -> None:
        mine = slice(30 * client, 30 * client + 30)
        if method is FedPer:
            plain_training(module, x[mine], y[mine], local, client, round)
            return
        for phase, epochs, lr in (("head", HEAD_EPOCHS, head_lr or 0.02), ("body", 2, 0.02)):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_((name in heads(module)) == (phase == "head"))
            settings = LocalTraining(**options | {"lr": lr}, epochs=epochs)
            plain_training(module, x[mine], y[mine], settings, client, round, phase=phase)
        module.requires_grad_(True)

    networks, server = plain_partly_shared(start, heads(start), 2, 3, train)
    for name, tensor in tensors(made).items():
        if name in heads(start):
            assert torch.equal(tensor, state(start)[name]), name
        else:
            way = (server[name] - state(start)[name]).norm()
            assert (tensor - server[name]).norm() <= 1e-4 * way + 1e-6, name
    for client, module in enumerate(networks):
        kept, expected = algorithm.kept.rows[client], FlatModel(module, CPU).weights[0, algorithm.own]
        way = (expected - FlatModel(network(model, SHAPE, 10), CPU).weights[0, algorithm.own]).norm()
        assert way > 0.05
        assert (kept - expected).norm() <= 1e-4 * way
    batches = 3
    assert set(made.clients["steps"]) == {batches * (2 if method is FedPer else HEAD_EPOCHS + 2)}
    shared = sum(tensor.numel() for name, tensor in state(start).items() if name not in heads(start))
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [4 * 2 * shared] * 3


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LeNet(), McMahanCNN()])
def test_a_phase_leaves_the_other_part(
    model: Model, vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: bits, of the body (with its statistics) in the head's phase, and of the head in the body's."""
    seen: list[str] = []
    train = Federation.train

    def watched(
        self: Federation, block: Block, start: Tensor, hooks: Any, phase: Phase, **vectors: Tensor
    ) -> Trained:
        before = start.clone()
        result = train(self, block, start, hooks, phase, **vectors)
        head = self.layout.segments["head"]
        parts = {"head": head, "body": slice(head.stop, self.layout.size)}
        for name, part in parts.items():
            assert torch.equal(result.weights[:, part], before[:, part]) == (name != phase.name)
        seen.append(phase.name)
        return result

    monkeypatch.setattr(Federation, "train", watched)
    local = LocalTraining(epochs=1, momentum=0.9, weight_decay=0.1, lr=0.02, vectorize=vectorize)
    run(tmp_path / "run.h5", FedRep(1), model=model, dataset=Few(80), rounds=2, local=local)
    assert seen == ["head", "body"] * (8 if vectorize == "off" else 2)


def test_absent_clients_keep_the_first_head(tmp_path: Path) -> None:
    """Oracle: by hand: of six clients two a round in turn, over two rounds: four have a head of their own."""
    algorithm = FedPer()
    made = run(
        tmp_path / "run.h5",
        algorithm,
        model=MLP((7,)),
        dataset=Few(120),
        clients=6,
        cohort=2,
        rounds=2,
        sampler=RoundRobin(),
    )
    assert sorted(algorithm.kept.rows) == [0, 1, 2, 3]
    first = FlatModel(network(MLP((7,)), SHAPE, 10), CPU).weights[0, algorithm.own]
    assert torch.equal(algorithm.kept[Block(*np.array([[5], [1], [1]]))][0], first)
    assert made.rounds["clients_trained"].tolist() == [2, 4]


@pytest.mark.parametrize("algorithm", [FedPer(), FedRep()])
def test_nothing_to_share_or_no_head(algorithm: PartlyShared, tmp_path: Path) -> None:
    """Oracle: one line that names the method."""
    name = type(algorithm).__name__
    message = f"--model: {name} needs a fully connected layer that is trained, and other trained layers"
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "a.h5", algorithm, model=LogisticRegression())
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "b.h5", algorithm, dataset=Regression(), partition=InOrder(), model=OneVector(), clients=5)


def test_no_epochs_or_rate() -> None:
    """Oracle: the messages."""
    with pytest.raises(BadInput, match="head_epochs = 0: must be at least 1"):
        FedRep(0)
    with pytest.raises(BadInput, match=r"head_lr = 0.0: must be above 0"):
        FedRep(head_lr=0)
