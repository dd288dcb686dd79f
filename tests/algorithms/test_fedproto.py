"""FedProto: LocalOnly where prototypes play no part, prototypes by hand, and the whole method in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedproto import FedProto
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.algorithms.prototypical import to_send
from fedmpi.algorithms.toolbox.features import class_means
from fedmpi.data import Digits, Dirichlet, make_split
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, LeNet, Model
from fedmpi.models._layers import before_last_layer
from fedmpi.policies import RoundRobin
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.compression import QSGD
from fedmpi.policies.server_optimizers import Adam
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few, in_order
from tests.support.experiments import CPU, SEED, network, normalised, order, plain_batches, run, state
from tests.training.test_sidebyside import MODELS, SIZES, Both, compare, double

__all__ = ["double"]  # a fixture

NAN = torch.nan


class Given:
    """A network whose features are its inputs, and whose logits are their first four."""

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, :4]

    def features(self, x: Tensor) -> Tensor:
        return x

    def classify(self, features: Tensor) -> Tensor:
        return features[:, :4]


class Extended(Model):
    """Another network, whose features are the inputs of its last layer."""

    def __init__(self, over: Model) -> None:
        self.over = over

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return FedProto().extend(self.over.build(shape, outputs), torch.zeros(2, *shape))


def with_classes(count: int, mu: float = 1.0) -> FedProto:
    method = FedProto(mu)
    method.classes = count
    return method


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize(
    ("model", "local"),
    [
        (LeNet(), {"momentum": 0.9, "weight_decay": 0.01}),
        (MLP((16, 8), norm="batch"), {"optimizer": "adam", "lr": 0.01}),
        (CifarCNN(dropout=0.5), {"lr": 0.01, "clip_norm": 1.0}),
    ],
)
@pytest.mark.parametrize(("mu", "rounds"), [(0.0, 2), (1.0, 1)])
def test_without_prototypes_it_is_local_only(
    mu: float, rounds: int, model: Model, local: dict[str, Any], vectorize: Any, tmp_path: Path
) -> None:
    """Oracle: LocalOnly, bit for bit, with mu = 0 and in the first round; clients of unequal sizes."""
    settings: dict[str, Any] = {
        "model": model,
        "dataset": Few(150),
        "partition": Dirichlet(0.3),
        "clients": 5,
        "rounds": rounds,
        "weighting": "uniform",
        "local": LocalTraining(epochs=1, vectorize=vectorize, **local),
    }
    algorithm, alone = FedProto(mu), LocalOnly()  # who weighs the training losses otherwise by default
    made, plain = run(tmp_path / "made.h5", algorithm, **settings), run(tmp_path / "plain.h5", alone, **settings)
    assert all(torch.equal(algorithm.own.rows[client], alone.own.rows[client]) for client in range(5))
    np.testing.assert_array_equal(made.rounds["head_accuracy"], plain.rounds["test_accuracy"])
    np.testing.assert_array_equal(made.rounds["train_loss"], plain.rounds["train_loss"])
    assert made.initial["test_accuracy"] == plain.initial["test_accuracy"], "before there are prototypes"
    assert (made.rounds["test_accuracy"] != made.rounds["head_accuracy"]).any()
    has_class = made.partition["label_counts"].sum(0) > 0
    assert (algorithm.prototypes.view(10, -1).isnan().any(1).numpy() == ~has_class).all()


def test_prototypes_move_the_models(tmp_path: Path) -> None:
    """Oracle: LocalOnly, from which the second round differs."""
    settings: dict[str, Any] = {"model": MLP((7,)), "dataset": Few(120), "rounds": 2}
    algorithm, alone = FedProto(), LocalOnly()
    run(tmp_path / "made.h5", algorithm, **settings)
    run(tmp_path / "plain.h5", alone, **settings)
    assert all((algorithm.own.rows[client] - alone.own.rows[client]).norm() > 0.01 for client in range(4))


def test_class_means() -> None:
    """Oracle: by hand; a class without samples counts 0."""
    features = torch.tensor([[0.0, 2.0], [0.0, 4.0], [6.0, 1.0]], dtype=torch.float64)
    labels = nn.functional.one_hot(torch.tensor([2, 2, 0]), 3).double()
    means, counts = class_means(features, labels)
    assert means.tolist() == [[6, 1], [0, 0], [0, 3]]
    assert counts.tolist() == [1, 0, 2]


def test_means_at_the_server() -> None:
    """Oracle: by hand: of (0, 2) and (2, 0) it is (1, 1); who lacks a class, or is lost, does not count."""
    method = with_classes(4)
    method.prototypes = torch.tensor([NAN, NAN, 9.0, 9.0, 5.0, 6.0, NAN, NAN])
    one = to_send(torch.tensor([[0.0, 2.0], [7.0, 7.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 0, 0, 0]))
    other = to_send(torch.tensor([[2.0, 0.0], [4.0, 8.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 3, 0, 0]))
    found = method.updated(torch.stack([one, torch.full_like(one, NAN), other])).view(4, 2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 1], [4, 8], [5, 6], [NAN, NAN]]), equal_nan=True)
    weighted = to_send(torch.tensor([[2.0, 0.0]] * 4), torch.tensor([3.0, 1, 1, 1]))
    assert method.updated(torch.stack([one, weighted]))[:2].tolist() == [1.5, 0.5]


def test_nearest_prototype() -> None:
    """Oracles: features that equal prototypes; distances by hand; the network's own output without prototypes."""
    method, net = with_classes(4), Given()
    prototypes = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    known = {"prototypes": prototypes.flatten()}
    given: Any = net
    everything: Any = SimpleNamespace(x=prototypes[[2, 0, 3, 1]])
    found = method.nearest(given, everything, known)
    assert found.argmax(1).tolist() == [2, 0, 3, 1]
    expected = -(everything.x[:, None] - prototypes).square().mean(2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    prototypes[2] = NAN
    found = method.nearest(given, everything, known)
    assert found.argmax(1)[1:].tolist() == [0, 3, 1]
    assert found.softmax(1)[:, 2].tolist() == [0] * 4
    nothing = {"prototypes": torch.full((24,), NAN)}
    assert torch.equal(method.nearest(given, everything, nothing), everything.x[:, :4])


def test_values_of_the_loss() -> None:
    """Oracle: by hand: mu times the mean square; zero, with a gradient of zero, at a prototype and without one."""
    method, net = with_classes(3, mu=2.0), Given()
    z = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prototypes = torch.full((3, 5), NAN, dtype=torch.float64)
    prototypes[0], prototypes[1] = z[0].detach(), z[1].detach() + torch.tensor([0.0, 0, 3, 0, 1])
    batch: Any = SimpleNamespace(x=z, y=torch.tensor([0, 1, 2]))
    given: Any = net
    losses = method.loss(given, batch, z, {"prototypes": prototypes.flatten()})
    apart = losses - nn.functional.cross_entropy(z[:, :4], batch.y, reduction="none")
    torch.testing.assert_close(apart, torch.tensor([0.0, 2 * 10 / 5, 0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(apart.sum(), z)
    assert gradient[[0, 2]].tolist() == [[0.0] * 5] * 2
    torch.testing.assert_close(gradient[1], 2 * 2 / 5 * torch.tensor([0.0, 0, -3, 0, -1], dtype=torch.float64))


def plain_fedproto(model: Model, local: LocalTraining, mu: float) -> tuple[list[nn.Module], Tensor]:
    """Two clients' networks, and the prototypes, after three rounds in PyTorch."""
    modules = [before_last_layer(network(model, SHAPE, 10)) for _ in range(2)]
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    normalises = any("running_mean" in name for name in state(network(model, SHAPE, 10)))
    prototypes: dict[int, Tensor] = {}
    for round in (1, 2, 3):
        sums: dict[int, list[Tensor]] = {}
        for client, module in enumerate(modules):
            assert module is not None
            mine = slice(30 * client, 30 * client + 30)
            optimizer = torch.optim.SGD(module.parameters(), local.lr, momentum=local.momentum)
            module.train()
            for epoch in range(local.epochs):
                for chosen in plain_batches(order(epoch, round, client, 30), local.batch_size, normalises):
                    z, labels = module.extractor(x[mine][chosen]), y[mine][chosen]
                    loss = nn.functional.cross_entropy(module.classifier(z), labels)
                    for row, label in zip(z, labels.tolist(), strict=True):
                        if label in prototypes:
                            loss = loss + mu * (row - prototypes[label]).square().mean() / len(z)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                z = module.eval().extractor(x[mine])
            for label in y[mine].unique().tolist():
                sums.setdefault(label, []).append(z[y[mine] == label].mean(0))
        prototypes.update({label: torch.stack(means).mean(0) for label, means in sums.items()})
    assert len(prototypes) == 10
    table = torch.stack([prototypes[label] for label in range(10)])
    return [module for module in modules if module is not None], table


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
def test_plain_pytorch(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks, class means and distances in PyTorch; over three rounds of two clients, 1e-3 of the way."""
    local = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.5, vectorize=vectorize)
    algorithm = FedProto(0.7)
    made = in_order(tmp_path / "run.h5", algorithm, model, 2, local)
    modules, prototypes = plain_fedproto(model, local, 0.7)
    start = FlatModel(network(Extended(model), SHAPE, 10), CPU).weights[0].clone()
    for client, module in enumerate(modules):
        expected = FlatModel(module, CPU).weights[0]
        assert (algorithm.own.rows[client] - expected).norm() <= 1e-3 * (expected - start).norm()
    found = algorithm.prototypes.view(10, -1)
    assert (found - prototypes).norm() <= 1e-3 * prototypes.norm()
    assert made.rounds["bytes_down"].tolist() == [4 * 2 * found.numel()] * 3
    assert made.rounds["bytes_up"].tolist() == [4 * 2 * (found.numel() + 10)] * 3


def test_whom_the_prototypes_reach(tmp_path: Path) -> None:
    """Oracle: the networks and prototypes that are left, measured in PyTorch; of six clients, two never came."""
    algorithm, partition = FedProto(), Dirichlet(0.5)
    settings: dict[str, Any] = {"model": MLP((7,)), "partition": partition, "sampler": RoundRobin()}
    made = run(tmp_path / "made.h5", algorithm, clients=6, cohort=2, rounds=2, **settings)
    assert sorted(algorithm.own.rows) == [0, 1, 2, 3]
    split = make_split(partition, DIGITS.train_y, DIGITS.test_y, 10, 6, SEED)
    x, y = normalised(DIGITS.test_x, Digits()), torch.from_numpy(DIGITS.test_y)
    flat = FlatModel(network(Extended(MLP((7,))), SHAPE, 10), CPU)
    prototypes, nearest, heads = algorithm.prototypes.view(10, -1), 0, 0
    for client, shard in enumerate(split.test):
        flat.load(algorithm.own.rows.get(client, algorithm.own.initial))
        with torch.no_grad():
            z = flat.module.eval().get_submodule("extractor")(x[shard])
            heads += int((flat.module(x[shard]).argmax(1) == y[shard]).sum())
        nearest += int(((z[:, None] - prototypes).square().sum(2).argmin(1) == y[shard]).sum())
    assert made.rounds["test_accuracy"][-1] == pytest.approx(nearest / len(y), abs=1e-3)
    assert made.rounds["head_accuracy"][-1] == pytest.approx(heads / len(y), abs=1e-3)
    assert made.rounds["test_accuracy"][-1] != made.rounds["head_accuracy"][-1]


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet batch", "dropout"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one; 1e-12 of the way, with prototypes of some classes."""
    both = Both(Extended(MODELS[model]), momentum=0.5)
    width = both.plain.feature_shape.numel()
    prototypes = torch.randn(len(SIZES), 10, width, generator=torch.Generator().manual_seed(1))
    prototypes[:, 3:5] = NAN
    compare(both, with_classes(10), 1e-12, prototypes=prototypes.flatten(1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weighting": "horvitz_thompson"}, "weighting = horvitz_thompson: FedProto does not form one mean"),
        ({"compression": QSGD()}, "compression = QSGD: cannot be combined with FedProto"),
        ({"server_optimizer": Adam()}, "server_optimizer = Adam: must be Replace with FedProto"),
        ({"attack": SignFlip()}, "attack = SignFlip: FedProto's server uses the models of single clients"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Oracle: one line."""
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "run.h5", FedProto(), **settings)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_weights_of_clients(weighting: Any, tmp_path: Path) -> None:
    """Oracle: class means of the trained networks' features in PyTorch, averaged over those with the class."""
    algorithm, partition = FedProto(), Dirichlet(0.3)
    run(tmp_path / "run.h5", algorithm, model=MLP((7,)), partition=partition, weighting=weighting)
    split = make_split(partition, DIGITS.train_y, DIGITS.test_y, 10, 4, SEED)
    x, y = normalised(DIGITS.train_x, Digits()), torch.from_numpy(DIGITS.train_y)
    flat, total, weights = (
        FlatModel(network(Extended(MLP((7,))), SHAPE, 10), CPU),
        torch.zeros(10, 7),
        torch.zeros(10),
    )
    for client, shard in enumerate(split.train):
        flat.load(algorithm.own.rows[client])
        with torch.no_grad():
            z = flat.module.eval().get_submodule("extractor")(x[shard])
        for label in y[shard].unique().tolist():
            weight = len(shard) if weighting == "samples" else 1
            total[label] += weight * z[y[shard] == label].mean(0)
            weights[label] += weight
    torch.testing.assert_close(algorithm.prototypes.view(10, 7), total / weights[:, None], rtol=1e-4, atol=1e-5)


def test_a_network_that_does_not_fit(tmp_path: Path) -> None:
    """Oracle: the message."""

    class Rectified(Model):
        def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), nn.ReLU())

    with pytest.raises(BadInput, match="--model: FedProto needs a Backbone or nn"):
        run(tmp_path / "run.h5", FedProto(), model=Rectified())
