"""FedRoD: balanced softmax and FedAvg where the personal head plays no part, and the method in plain PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi.algorithms.fedrod import LEAST, FedRoD
from fedmpi.data import Digits, Dirichlet, Partition
from fedmpi.errors import BadInput
from fedmpi.models import MLP, Backbone, LeNet, LogisticRegression, Model
from fedmpi.policies import RoundRobin
from fedmpi.policies.server_optimizers import Adam
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder, OneVector, Regression
from tests.support.digits import DIGITS, SHAPE, Few, in_order
from tests.support.experiments import CPU, network, normalised, order, plain_batches, run, state, tensors
from tests.training.test_sidebyside import MODELS, SIZES, Both, compare, double

__all__ = ["double"]  # a fixture


class Balanced(FedRoD):
    """FedRoD without the loss of the personal head."""

    def loss(self, net: Any, batch: Any, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        generic = net.run("classifier.generic", net.features(batch.x))
        return self.task.loss(generic + client["prior"], batch.y)


class Alike(Partition):
    """The same number of samples of each class for each client."""

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        each = np.bincount(labels).min() // clients
        ranked = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        return [
            np.concatenate([ranks[client * each : client * each + each] for ranks in ranked])
            for client in range(clients)
        ]


class Extended(Model):
    """Another network with FedRoD's heads."""

    def __init__(self, over: Model) -> None:
        self.over = over

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return FedRoD().extend(self.over.build(shape, outputs), torch.zeros(2, *shape))


def shared(model: Model) -> list[tuple[str, str]]:
    """The names of the shared tensors: in FedRoD's network, and in the network that it extends."""
    ours, theirs = (state(network(one, SHAPE, 10)) for one in (Extended(model), model))
    return list(zip([name for name in ours if "personal" not in name], theirs, strict=True))


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LeNet(), MLP((16, 8), norm="batch")])
@pytest.mark.parametrize("optimizer", [{"momentum": 0.9, "weight_decay": 0.01}, {"optimizer": "adam", "lr": 0.01}])
def test_the_personal_head_does_not_reach_the_rest(
    optimizer: dict[str, Any], model: Model, vectorize: Any, tmp_path: Path
) -> None:
    """Oracle: balanced softmax alone, bit for bit; clients of unequal sizes, of whom most lack some classes."""
    settings: dict[str, Any] = {
        "model": model,
        "dataset": Few(150),
        "partition": Dirichlet(0.3),
        "clients": 5,
        "rounds": 3,
        "local": LocalTraining(epochs=1, vectorize=vectorize, **optimizer),
    }
    algorithm = FedRoD()
    made, plain = run(tmp_path / "made.h5", algorithm, **settings), run(tmp_path / "plain.h5", Balanced(), **settings)
    assert made.weights_sha256 == plain.weights_sha256
    np.testing.assert_array_equal(made.rounds["global_accuracy"], plain.rounds["global_accuracy"])
    assert all(row.norm() > 0 for row in algorithm.kept.rows.values())
    assert not tensors(made)["classifier.personal.weight"].any()


@pytest.mark.parametrize("model", [LeNet(), MLP((33,)), LogisticRegression()])
def test_balanced_clients_train_fedavgs_model(model: Model, tmp_path: Path) -> None:
    """Oracle: FedAvg, to 1e-5 of the way: equal numbers of all classes add the same number to all logits."""
    settings: dict[str, Any] = {"model": model, "dataset": Few(300), "partition": Alike(), "clients": 3, "rounds": 3}
    made, plain = run(tmp_path / "made.h5", FedRoD(), **settings), run(tmp_path / "plain.h5", **settings)
    start, found = state(network(model, SHAPE, 10)), tensors(plain)
    for mine, name in shared(model):
        way = (found[name] - start[name]).norm()
        assert (tensors(made)[mine] - found[name]).norm() <= 1e-5 * way + 1e-6, name
    np.testing.assert_allclose(made.rounds["global_accuracy"], plain.rounds["test_accuracy"], atol=1e-6)


def test_values_of_the_loss() -> None:
    """Oracle: by hand, for numbers of samples (3, 1) and logits of zero; and which part has which gradient."""
    generic, personal = (torch.zeros(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    net: Any = SimpleNamespace(
        features=lambda x: x, run=lambda part, z: generic if part == "classifier.generic" else personal
    )
    batch: Any = SimpleNamespace(x=torch.zeros(2, 3), y=torch.tensor([1, 0]))
    prior = torch.tensor([3.0, 1.0], dtype=torch.float64).log()
    losses = FedRoD().loss(net, batch, torch.zeros(1), {"prior": prior})
    expected = torch.tensor([math.log(4), math.log(4 / 3)], dtype=torch.float64) + math.log(2)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    losses.sum().backward()
    assert generic.grad is not None
    assert personal.grad is not None
    torch.testing.assert_close(generic.grad[0], torch.tensor([0.75, -0.75], dtype=torch.float64))
    torch.testing.assert_close(personal.grad[0], torch.tensor([0.5, -0.5], dtype=torch.float64))


def test_at_first_all_clients_have_the_generic_model(tmp_path: Path) -> None:
    """Oracle: the initial accuracy of FedAvg, for it is that of the generic model; zero, of those who never came."""
    algorithm = FedRoD()
    settings: dict[str, Any] = {
        "model": MLP((7,)),
        "dataset": Few(120),
        "clients": 6,
        "cohort": 2,
        "rounds": 2,
        "sampler": RoundRobin(),
    }
    made, plain = run(tmp_path / "made.h5", algorithm, **settings), run(tmp_path / "plain.h5", **settings)
    assert made.initial["test_accuracy"] == plain.initial["test_accuracy"]
    assert sorted(algorithm.kept.rows) == [0, 1, 2, 3]
    assert not algorithm.kept.initial.any()
    assert made.rounds["clients_trained"].tolist() == [2, 4]


def plain_fedrod(
    model: Model, clients: int, local: LocalTraining
) -> tuple[nn.Module, dict[str, Tensor], list[nn.Linear]]:
    """The first network, the server's tensors and the clients' heads after three rounds in PyTorch.

    Each part has an optimizer of its own.
    """
    start = network(model, SHAPE, 10)
    last = [layer for layer in start.modules() if isinstance(layer, nn.Linear)][-1]
    heads = [copy.deepcopy(last) for _ in range(clients)]
    for parameter in (p for head in heads for p in head.parameters()):
        nn.init.zeros_(parameter)
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    server, normalises = copy.deepcopy(start), any(isinstance(layer, nn.BatchNorm2d) for layer in start.modules())
    for round in (1, 2, 3):
        trained = []
        for client, head in enumerate(heads):
            mine, module = slice(30 * client, 30 * client + 30), copy.deepcopy(server).train()
            layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
            seen: list[Tensor] = []
            layers[-1].register_forward_hook(lambda layer, inputs, output, seen=seen: seen.append(inputs[0]))
            prior = np.log(np.maximum(np.bincount(y[mine], minlength=10), LEAST))
            options: dict[str, Any] = {"lr": local.lr, "momentum": local.momentum, "weight_decay": local.weight_decay}
            optimizers = [torch.optim.SGD(part.parameters(), **options) for part in (module, head)]
            for epoch in range(local.epochs):
                for chosen in plain_batches(order(epoch, round, client, 30), local.batch_size, normalises):
                    logits, labels = module(x[mine][chosen]), y[mine][chosen]
                    both = logits.detach() + head(seen.pop().detach())
                    for optimizer, output in zip(optimizers, (logits + torch.tensor(prior), both), strict=True):
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(output.float(), labels).backward()
                        optimizer.step()
            trained.append(state(module))
        mean = {name: torch.stack([one[name] for one in trained]).mean(0) for name in trained[0]}
        server.load_state_dict(mean, strict=False)
    return start, state(server), heads


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
def test_plain_pytorch(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks in PyTorch with two optimizers; over three rounds of two clients, to 1e-4 of the way."""
    local = LocalTraining(epochs=2, batch_size=10, lr=0.02, momentum=0.9, weight_decay=0.05, vectorize=vectorize)
    algorithm = FedRoD()
    made = in_order(tmp_path / "run.h5", algorithm, model, 2, local)
    start, server, heads = plain_fedrod(model, 2, local)
    for mine, name in shared(model):
        way = (server[name] - state(start)[name]).norm()
        assert (tensors(made)[mine] - server[name]).norm() <= 1e-4 * way + 1e-6, name
    for client, head in enumerate(heads):
        expected = FlatModel(head, CPU).weights[0]
        assert expected.norm() > 0.05
        assert (algorithm.kept.rows[client] - expected).norm() <= 1e-4 * expected.norm()
    traffic = 4 * 2 * sum(tensor.numel() for tensor in server.values())
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [traffic] * 3


def test_both_heads_are_evaluated(tmp_path: Path) -> None:
    """Oracle: the network with both heads of the only client, whose test samples are the whole test set."""
    algorithm, local = FedRoD(), LocalTraining(epochs=3)
    made = run(tmp_path / "run.h5", algorithm, model=LeNet(), dataset=Few(30), clients=1, rounds=2, local=local)
    module = algorithm.extend(network(LeNet(), SHAPE, 10), torch.zeros(2, *SHAPE))
    model = FlatModel(module, CPU)
    module.load_state_dict(tensors(made), strict=False)
    x, y = normalised(DIGITS.test_x, Digits()), torch.from_numpy(DIGITS.test_y)

    def accuracy() -> float:
        with torch.no_grad():
            return float((module.eval()(x).argmax(1) == y).double().mean())

    assert made.rounds["global_accuracy"][-1] == pytest.approx(accuracy(), abs=1e-6)
    model.weights[0, algorithm.own] = algorithm.kept.rows[0]
    assert made.rounds["test_accuracy"][-1] == pytest.approx(accuracy(), abs=1e-6)


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one, each with a prior of its own; 1e-12 of the way."""
    prior = torch.rand(len(SIZES), 10, generator=torch.Generator().manual_seed(1)).log()
    compare(Both(Extended(MODELS[model]), momentum=0.5), FedRoD(), 1e-12, prior=prior)


def test_a_server_optimizer_leaves_the_personal_head_at_zero(tmp_path: Path) -> None:
    """Oracle: zero, so that the server's model is the generic one."""
    made = run(tmp_path / "run.h5", FedRoD(), model=LeNet(), dataset=Few(80), rounds=2, server_optimizer=Adam())
    assert not tensors(made)["classifier.personal.weight"].any()


def test_networks_of_all_kinds() -> None:
    """Oracle: the same output with the personal head at zero: a backbone, a sequence, nested sequences, one layer."""
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 10))))
    x = torch.rand(3, *SHAPE)
    for module in (network(LeNet(), SHAPE, 10).eval(), nested, network(LogisticRegression(), SHAPE, 10)):
        before = module(x)
        extended = FedRoD().extend(module, x)
        assert isinstance(extended, Backbone)
        torch.testing.assert_close(extended.eval()(x), before)
        layout = FlatModel(extended, CPU).layout
        assert {e.name for e in layout.entries if e.segment == "head"} == {
            "classifier.personal.weight",
            "classifier.personal.bias",
        }


def test_a_network_that_does_not_end_in_a_layer(tmp_path: Path) -> None:
    """Oracle: one line, before anything is written."""
    settings: dict[str, Any] = {"dataset": Regression(), "partition": InOrder(), "model": OneVector(), "clients": 5}
    with pytest.raises(
        BadInput, match=r"--model: FedRoD needs a Backbone or nn\.Sequential that ends in a fully connected"
    ):
        run(tmp_path / "run.h5", FedRoD(), **settings)
    assert not (tmp_path / "run.h5").exists()
