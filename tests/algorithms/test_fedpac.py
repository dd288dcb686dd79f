"""FedPAC: weights of heads by hand and by enumeration, FedRep where each head counts alone, and plain PyTorch."""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import fedpac
from fedmpi.algorithms.fedpac import LEAST, FedPAC, head_weights, statistics
from fedmpi.algorithms.fedper import FedRep
from fedmpi.data import Digits, Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, LogisticRegression, Model
from fedmpi.models._layers import Backbone, before_last_layer
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.compression import QSGD
from fedmpi.policies.privacy import CentralDP
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few, in_order
from tests.support.experiments import CPU, Cut, network, normalised, order, plain_batches, run, state, tensors


def direct(moments: Tensor, variances: Tensor, i: int) -> Tensor:
    """[m, m], diag V plus the inner products of h_i - h_j and h_i - h_l."""
    apart = moments[i] - moments
    return apart @ apart.T + variances.diag()


def enumerated(matrix: Tensor) -> Tensor:
    """[m], the weights with the smallest a'P a: the best of all solutions on some clients that are not negative."""
    best, found = np.inf, torch.zeros(len(matrix), dtype=matrix.dtype)
    for size in range(1, len(matrix) + 1):
        for some in map(list, combinations(range(len(matrix)), size)):
            solution = torch.linalg.solve(matrix[some][:, some], torch.ones(size, dtype=matrix.dtype))
            weights = torch.zeros_like(found)
            weights[some] = solution / solution.sum()
            value = float(weights @ matrix @ weights)
            if (weights >= 0).all() and value < best:
                best, found = value, weights
    found = torch.where(found < LEAST, 0, found)
    return found / found.sum()


# Weights of heads


def test_two_clients_by_hand() -> None:
    """Oracle: V = (1, 1) and |h_1 - h_2|^2 = 2 minimise a^2 + 3 (1 - a)^2 by a = 3/4."""
    moments = torch.tensor([[1.0, 5, 0], [0, 5, 1]], dtype=torch.float64)
    found = head_weights(moments, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64))


def test_equal_clients() -> None:
    """Oracle: the same weight for each; one client alone has weight 1, also without any variance."""
    moments = torch.randn(1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    found = head_weights(moments, torch.full((5,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((5, 5), 0.2, dtype=torch.float64))
    for variance in (0.0, 2.0):
        assert head_weights(moments[:1], torch.full((1,), variance, dtype=torch.float64)).tolist() == [[1.0]]


def test_clients_that_nobody_resembles() -> None:
    """Oracle: without variance, whoever lies outside the hull of the others keeps its own head."""
    moments = torch.eye(4, dtype=torch.float64)
    moments = torch.cat((moments, moments.mean(0, keepdim=True)))
    found = head_weights(moments, torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(found[:4], torch.eye(5, dtype=torch.float64)[:4], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[4] @ moments, moments[4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_every_set_of_clients(seed: int, scale: float) -> None:
    """Oracle: the best of all sets of six clients, with the matrix as in the paper; in units of any size."""
    generator = torch.Generator().manual_seed(seed)
    moments = 3 + torch.randn(6, 9, dtype=torch.float64, generator=generator)
    variances = 0.2 + 3 * torch.rand(6, dtype=torch.float64, generator=generator)
    found = head_weights(scale * moments, scale**2 * variances)
    for i in range(6):
        torch.testing.assert_close(found[i], enumerated(direct(moments, variances, i)), rtol=1e-6, atol=1e-9)
    assert (found.diagonal() < 1).any()
    assert (found == 0).any()


def test_statistics() -> None:
    """Oracle: the mean and the variance of one-hot labels times features, over the samples."""
    features = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = nn.functional.one_hot(torch.tensor([0, 0, 3, 3, 3, 1, 0, 3]), 4).double()
    means, moments, variance = statistics(features, labels)
    products = (labels[:, :, None] * features[:, None]).flatten(1)
    torch.testing.assert_close(moments, products.mean(0))
    torch.testing.assert_close(variance, products.var(0, correction=0).sum()[None] / 8)
    torch.testing.assert_close(means.view(4, 3)[3], features[[2, 3, 4, 7]].mean(0))
    assert means.view(4, 3)[2].tolist() == [0, 0, 0]


# The method


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LeNet(), MLP((16, 8), norm="batch")])
def test_alone_it_is_fedrep(model: Model, vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: FedRep with one epoch of the head, bit for bit: without the distance, and with weights of their own."""
    settings: dict[str, Any] = {
        "model": model,
        "dataset": Few(150),
        "partition": Dirichlet(0.3),
        "clients": 5,
        "rounds": 3,
        "local": LocalTraining(epochs=1, momentum=0.5, vectorize=vectorize),
    }
    combining = FedPAC(mu=0.0)
    combined = run(tmp_path / "combined.h5", combining, **settings)
    monkeypatch.setattr(fedpac, "head_weights", lambda moments, v: torch.eye(len(v), dtype=torch.float64))
    algorithm, alone = FedPAC(mu=0.0), FedRep(1)
    made, plain = run(tmp_path / "made.h5", algorithm, **settings), run(tmp_path / "plain.h5", alone, **settings)
    assert made.weights_sha256 == plain.weights_sha256
    assert all(torch.equal(algorithm.kept.rows[client], alone.kept.rows[client]) for client in range(5))
    for column in ("train_loss", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    assert made.rounds["own_share"].tolist() == [1, 1, 1]
    assert combined.weights_sha256 != plain.weights_sha256
    assert (combined.rounds["own_share"] < 1).all()


def plain_fedpac(model: Model, clients: int, local: LocalTraining, mu: float) -> tuple[list[Backbone], Tensor]:
    """The clients' networks with the last body, and the prototypes, after three rounds in PyTorch."""
    server = before_last_layer(network(model, SHAPE, 10))
    assert server
    heads = [copy.deepcopy(server.classifier) for _ in range(clients)]
    x, y = normalised(DIGITS.train_x[: 30 * clients], Digits()), torch.from_numpy(DIGITS.train_y[: 30 * clients])
    normalises, global_means = any("running_mean" in name for name in state(server)), dict[int, Tensor]()

    def train(parts: Backbone, client: int, round: int, phase: str, pulls: dict[int, Tensor]) -> None:
        mine = slice(30 * client, 30 * client + 30)
        trains_head = phase == "head"
        part = parts.classifier if trains_head else parts.extractor
        optimizer = torch.optim.SGD(part.parameters(), local.lr, momentum=local.momentum)
        parts.train()
        parts.extractor.train(not trains_head)
        for epoch in range(1 if trains_head else local.epochs):
            for chosen in plain_batches(order(epoch, round, client, 30, phase=phase), local.batch_size, normalises):
                z, labels = parts.extractor(x[mine][chosen]), y[mine][chosen]
                loss = nn.functional.cross_entropy(parts.classifier(z), labels)
                if pulls:
                    loss = loss + mu * (z - torch.stack([pulls[c] for c in labels.tolist()])).square().mean()
                parts.zero_grad()
                loss.backward()
                optimizer.step()

    def means(parts: Backbone, client: int) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        mine = slice(30 * client, 30 * client + 30)
        with torch.no_grad():
            z, labels = parts.eval().extractor(x[mine]).double(), y[mine]
        return z, labels, {label: z[labels == label].mean(0) for label in labels.unique().tolist()}

    for round in (1, 2, 3):
        bodies, moments, variances, sums, counts = [], [], [], dict[int, Tensor](), np.zeros(10)
        for client, head in enumerate(heads):
            parts = Backbone(copy.deepcopy(server.extractor), head)
            z, labels, own = means(parts, client)
            products = (nn.functional.one_hot(labels, 10)[:, :, None] * z[:, None]).flatten(1)
            moments.append(products.mean(0))
            variances.append(products.var(0, correction=0).sum() / 30)
            train(parts, client, round, "head", {})
            train(parts, client, round, "body", {c: m.float() for c, m in {**own, **global_means}.items()})
            _, labels, after = means(parts, client)
            for label, mean in after.items():
                count = int((labels == label).sum())
                sums[label] = sums.get(label, torch.zeros_like(mean)) + count * mean
                counts[label] += count
            bodies.append(state(parts.extractor))
        global_means = {label: total / counts[label] for label, total in sums.items()}
        server.extractor.load_state_dict(
            {name: torch.stack([body[name] for body in bodies]).mean(0) for name in bodies[0]}, strict=False
        )
        trained = [state(head) for head in copy.deepcopy(heads)]
        for i, head in enumerate(heads):
            weights = enumerated(direct(torch.stack(moments), torch.stack(variances), i)).float()
            head.load_state_dict(
                {n: sum(a * one[n] for a, one in zip(weights, trained, strict=True)) for n in trained[0]}
            )
    table = torch.stack([global_means[label] for label in range(10)])
    return [Backbone(copy.deepcopy(server.extractor), head) for head in heads], table


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
def test_plain_pytorch(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: three networks in PyTorch, an optimizer for each part in turn; over three rounds, 1e-3 of the way."""
    local = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.5, vectorize=vectorize)
    algorithm = FedPAC(mu=0.7)
    made = in_order(tmp_path / "run.h5", algorithm, model, 3, local)
    expected, prototypes = plain_fedpac(model, 3, local, 0.7)
    start = FlatModel(before_last_layer(network(model, SHAPE, 10)) or nn.Identity(), CPU)
    for client, parts in enumerate(expected):
        flat = FlatModel(parts, CPU)
        way = (flat.weights[0] - start.weights[0]).norm()
        assert (algorithm.kept.rows[client] - flat.weights[0, algorithm.own]).norm() <= 1e-3 * way
        for name, tensor in state(parts.extractor).items():
            assert (tensors(made)[f"extractor.{name}"] - tensor).norm() <= 1e-3 * way, name
    found = algorithm.prototypes.view(10, -1)
    assert (found - prototypes).norm() <= 1e-3 * prototypes.norm()
    assert ((made.rounds["own_share"] > 0.34) & (made.rounds["own_share"] < 0.99)).all()


def test_a_lost_client_keeps_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the head that it has trained, where its statistics are not finite; the others are combined."""
    real, heads = fedpac.statistics, dict[int, Tensor]()

    def too_large(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, moments, variance = real(features, labels)
        return means, moments, variance * (torch.inf if len(features) == 30 else 1)

    train = FedPAC.train_parts

    def watched(self: FedPAC, fed: Any, block: Any, start: Tensor, **vectors: Tensor) -> Any:
        local = train(self, fed, block, start, **vectors)
        heads.update({int(block.clients[k]): local.weights[k, self.own].clone() for k in range(len(block))})
        return local

    monkeypatch.setattr(fedpac, "statistics", too_large)
    monkeypatch.setattr(FedPAC, "train_parts", watched)
    algorithm = FedPAC()
    run(tmp_path / "run.h5", algorithm, model=MLP((7,)), partition=Cut(40, 30, 50, 60))
    kept = {client: torch.equal(algorithm.kept.rows[client], head) for client, head in heads.items()}
    assert kept == {0: False, 1: True, 2: False, 3: False}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compression": QSGD()}, "compression = QSGD: cannot be combined with FedPAC"),
        ({"attack": SignFlip()}, "attack = SignFlip: FedPAC's server uses the models of single clients"),
        (
            {"privacy": CentralDP(), "weighting": "uniform"},
            "algorithm = FedPAC: must be a method whose server sees only one mean of models, with CentralDP",
        ),
        ({"model": LogisticRegression()}, "--model: FedPAC needs a fully connected layer that is trained, and other"),
        ({}, "head_epochs = 0: must be at least 1"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Oracle: one line."""
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "run.h5", FedPAC(head_epochs=1 if settings else 0), **settings)
