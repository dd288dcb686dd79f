"""The course of a round: FedMA beside FedAvg, and beside a plain computation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedma import FedMA
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.models import MLP, LeNet, LogisticRegression
from fedmpi.policies import Cohort
from fedmpi.training.block import Block
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder
from tests.support.digits import DIGITS, EACH, SHAPE, Few, in_order
from tests.support.experiments import network, normalised, plain_training, run, state, tensors

CLIENTS = 3
X, Y = normalised(DIGITS.train_x[: CLIENTS * EACH], Digits()), torch.from_numpy(DIGITS.train_y[: CLIENTS * EACH])


class Shuffled(FedMA):
    """FedMA whose clients send their hidden units in an order of their own, another one each."""

    def local_models(self, fed: Federation, cohort: Cohort, start: Tensor) -> list[tuple[Block, Tensor]]:
        models = super().local_models(fed, cohort, start)
        for block, weights in models:
            for client, own in zip(block.clients.tolist(), weights, strict=True):
                rng = np.random.default_rng([client, fed.round])
                for group in fed.at_clients.unit_groups():
                    self.matching.permute(own, group, rng.permutation(group.size))
        return models


def settings(**local: Any) -> dict[str, Any]:
    return {"dataset": Few(CLIENTS * EACH), "partition": InOrder(), "clients": CLIENTS} | {
        "local": LocalTraining(**{"epochs": 2, "batch_size": 10, "lr": 0.05, **local})
    }


def shares(classes: int = 10) -> Tensor:
    """[clients, classes] of the samples of each class, how much each client has."""
    counts = torch.stack([nn.functional.one_hot(part, classes).sum(0) for part in Y.split(EACH)]).float()
    return counts / counts.sum(0).clamp(min=1)


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [MLP((9, 6)), LeNet(), LeNet(norm="group")])
def test_orders_of_the_clients_do_not_matter(tmp_path: Path, model: Any, vectorize: Any) -> None:
    """Oracle: the bits of models whose units are not shuffled; FedAvg of shuffled models is another model."""
    made = [
        run(tmp_path / f"{number}.h5", method, model=model, rounds=2, **settings(vectorize=vectorize))
        for number, method in enumerate((FedMA(retrain=False), Shuffled(retrain=False)))
    ]
    assert made[0].weights_sha256 == made[1].weights_sha256


@pytest.mark.parametrize("model", [MLP((9, 6)), LeNet()])
def test_aligned_clients_give_fedavg(tmp_path: Path, model: Any) -> None:
    """Oracle: FedAvg, bit for bit, but for the last layer; and there the clients' own, class by class.

    After few small steps each unit is still the nearest to what it was.
    """
    local = settings(lr=0.01)
    made = run(tmp_path / "made.h5", FedMA(retrain=False), model=model, **local)
    plain = run(tmp_path / "plain.h5", FedAvg(), model=model, **local)
    mine, theirs = tensors(made), tensors(plain)
    weight, bias, *_ = mine
    for name in set(mine) - {weight, bias}:
        assert torch.equal(mine[name], theirs[name]), name
    clients = []
    for client, (x, y) in enumerate(zip(X.split(EACH), Y.split(EACH), strict=True)):
        clients.append(network(model, SHAPE, 10))
        plain_training(clients[-1], x, y, local["local"], client)
    for name, rows in ((weight, shares()[:, :, None]), (bias, shares())):
        expected = sum(share * state(module)[name] for share, module in zip(rows, clients, strict=True))
        torch.testing.assert_close(mine[name], expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-4)
    sent = 4 * len(made.weights)
    np.testing.assert_array_equal(made.rounds["bytes_up"], [CLIENTS * sent])
    np.testing.assert_array_equal(made.rounds["bytes_down"], [CLIENTS * sent])


def test_a_class_that_nobody_has_keeps_its_weights(tmp_path: Path) -> None:
    """Oracle: the initial weights of the last layer's rows for these classes, bit for bit; the others have moved."""
    few = {**settings(), "dataset": Few(5), "clients": 1, "partition": InOrder()}
    made = tensors(run(tmp_path / "made.h5", FedMA(retrain=False), model=MLP((9,)), **few))
    start = state(network(MLP((9,)), SHAPE, 10))
    unseen = sorted(set(range(10)) - set(DIGITS.train_y[:5].tolist()))
    assert len(unseen) == 5
    for name in ("classifier.weight", "classifier.bias"):
        kept = (made[name] == start[name]).reshape(10, -1).all(1)
        assert np.flatnonzero(kept).tolist() == unseen


def test_layer_by_layer_is_a_plain_loop(tmp_path: Path) -> None:
    """Oracle: networks in PyTorch whose matched layers are frozen, matched by loops over units."""
    model, made = MLP((9, 6)), FedMA(retrain_epochs=1)
    found = tensors(in_order(tmp_path / "made.h5", made, model, CLIENTS, settings(lr=1.0)["local"]))
    local = settings(lr=1.0)["local"]
    again = LocalTraining(epochs=1, batch_size=10, lr=1.0)
    server, moved = network(model, SHAPE, 10), 0
    for round in (1, 2, 3):
        reference = {name: tensor.clone() for name, tensor in state(server).items()}
        clients = []
        for client, (x, y) in enumerate(zip(X.split(EACH), Y.split(EACH), strict=True)):
            clients.append(network(model, SHAPE, 10))
            clients[-1].load_state_dict(reference)
            plain_training(clients[-1], x, y, local, client, round)
        for number, (layer, following) in enumerate(pairwise(("extractor.1", "extractor.4", "classifier"))):
            for module in clients:
                mine, target = (
                    torch.cat([tensor[f"{layer}.weight"], tensor[f"{layer}.bias"][:, None]], 1)
                    for tensor in (state(module), reference)
                )
                order = linear_sum_assignment(torch.cdist(target.double(), mine.double()).square().numpy())[1]
                moved += int((order != np.arange(len(order))).any())
                tensors_of = state(module)
                for name in ("weight", "bias"):
                    tensors_of[f"{layer}.{name}"] = tensors_of[f"{layer}.{name}"][order]
                tensors_of[f"{following}.weight"] = tensors_of[f"{following}.weight"][:, order]
                module.load_state_dict(tensors_of)
            mean = {
                f"{layer}.{name}": torch.stack([state(module)[f"{layer}.{name}"] for module in clients]).mean(0)
                for name in ("weight", "bias")
            }
            for client, (x, y) in enumerate(zip(X.split(EACH), Y.split(EACH), strict=True)):
                clients[client].load_state_dict(mean, strict=False)
                for name in mean:
                    clients[client].get_parameter(name).requires_grad_(False)
                plain_training(clients[client], x, y, again, client, round, phase=f"after layer {number}")
        whole = state(clients[0])
        for name, rows in (("classifier.weight", shares()[:, :, None]), ("classifier.bias", shares())):
            both = zip(rows, clients, strict=True)
            whole[name] = torch.stack([share * state(module)[name] for share, module in both]).sum(0)
        server.load_state_dict(whole)
    assert moved > 0  # else nothing was matched
    for name, tensor in state(server).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_traffic_of_layers(tmp_path: Path) -> None:
    """Oracle: by hand: the model down, every layer up and, but for the last, down again; sweeps repeat layers."""
    made = run(tmp_path / "made.h5", FedMA(sweeps=1), model=MLP((9, 6)), **settings())
    layers, outputs = 4 * (64 * 9 + 9 + 9 * 6 + 6), 4 * (6 * 10 + 10)
    assert made.rounds["bytes_up"].tolist() == [CLIENTS * (2 * layers + outputs)]
    assert made.rounds["bytes_down"].tolist() == [CLIENTS * (layers + outputs + 2 * layers)]


def test_frozen_normalisation_keeps_its_statistics(tmp_path: Path) -> None:
    """Oracle: without retraining, the first layer's statistics are the same bits: they are merged before it."""
    made, cheap = (
        tensors(run(tmp_path / f"{retrain}.h5", FedMA(retrain=retrain), model=LeNet(), **settings(lr=0.01)))
        for retrain in (True, False)
    )
    first = [name for name in made if name.startswith(("extractor.0", "extractor.1."))]
    assert len(first) == 6
    for name in first:
        assert torch.equal(made[name], cheap[name]), name
    assert not torch.equal(made["extractor.5.running_mean"], cheap["extractor.5.running_mean"])


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--model: FedMA needs one with hidden units"):
        run(tmp_path / "none.h5", FedMA(), model=LogisticRegression())
    for options, message in (({"sweeps": -1}, "sweeps = -1"), ({"retrain_epochs": 0}, "retrain_epochs = 0")):
        with pytest.raises(BadInput, match=message):
            FedMA(**options)  # type: ignore[arg-type]
