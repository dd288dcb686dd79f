"""MOON: FedAvg without its term, the term's values and slope, and the paper's algorithm in plain PyTorch."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.moon import MOON
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, Backbone, CifarCNN, LeNet, Model, Projected
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder, OneVector, Regression
from tests.support.digits import DIGITS, SHAPE, Few
from tests.support.experiments import CPU, network, normalised, order, plain_batches, run
from tests.training.test_sidebyside import MODELS, SIZES, Both, compare, double

__all__ = ["double"]  # a fixture


# Without its term


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize(
    ("model", "local"),
    [
        (LeNet(), {"epochs": 2, "momentum": 0.9}),
        (CifarCNN(dropout=0.5), {"epochs": 1, "lr": 0.01, "augmentation": "flip"}),
    ],
)
def test_without_its_term_it_is_fedavg(model: Model, local: dict[str, Any], vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit; with a term too small to matter, to 1e-4 of what a real one changes.

    So the networks that run beside the trained one leave dropout, augmentation and statistics alone.
    """
    settings: dict[str, Any] = {
        "model": model,
        "dataset": Few(120),
        "rounds": 2,
        "local": LocalTraining(**local, vectorize=vectorize),
    }
    plain, none, hardly, some = (
        run(tmp_path / f"{number}.h5", algorithm, **settings)
        for number, algorithm in enumerate((FedAvg(), MOON(0), MOON(1e-9), MOON(5)))
    )
    assert plain.weights_sha256 == none.weights_sha256
    for column in ("train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(plain.rounds[column], none.rounds[column])
    changed = np.linalg.norm(some.weights - plain.weights)
    assert changed > 1e-3
    assert np.linalg.norm(hardly.weights - plain.weights) < 1e-4 * changed
    assert some.rounds["bytes_up"].tolist() == plain.rounds["bytes_up"].tolist()


# The term


class Given:
    """In place of a network: its features [B, n] are given, those at other weights are these weights."""

    def __init__(self, features: Tensor) -> None:
        self.given = features

    def features(self, x: Tensor) -> Tensor:
        return self.given

    def classify(self, features: Tensor) -> Tensor:
        return features[:, :4] * 0

    def at(self, weights: Tensor) -> Given:
        return Given(weights)


def term(mu: float, tau: float, features: Tensor, received: Tensor, previous: Tensor) -> Tensor:
    """What MOON adds to the cross entropy, here of four equal logits."""
    batch: Any = SimpleNamespace(x=features, y=torch.zeros(len(features), dtype=torch.int64))
    net: Any = Given(features)
    return MOON(mu, tau).loss(net, batch, received, {"previous": previous}) - math.log(4)


def at_angle(degrees: float) -> Tensor:
    """[1, 5] of length 3, at an angle to the first axis."""
    radians = math.radians(degrees)
    return torch.tensor([[3 * math.cos(radians), 3 * math.sin(radians), 0, 0, 0]], dtype=torch.float64)


def test_orthogonal_features() -> None:
    """Oracle: mu log(1 + e^(-1/tau)), whatever the lengths; mu and tau are not each other."""
    z = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orthogonal = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    orthogonal -= (orthogonal * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True) * z
    for mu, tau in ((2.0, 0.25), (0.25, 2.0)):
        expected = torch.full((6,), mu * math.log1p(math.exp(-1 / tau)), dtype=torch.float64)
        torch.testing.assert_close(term(mu, tau, z, 3 * z, orthogonal), expected, rtol=1e-10, atol=0)


def test_equal_models_give_no_gradient() -> None:
    """Oracle: log 2 and a gradient of zero, where the two other networks' features are the same."""
    z, other = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    value = term(1.0, 0.5, z, other, other)
    torch.testing.assert_close(value, torch.full((6,), math.log(2), dtype=torch.float64), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.abs().max() < 1e-14


def test_nearer_is_less() -> None:
    """Oracle: the term falls as the cosine with the received model's features grows; differences for slopes."""
    previous = at_angle(-60)
    values = [term(1.0, 0.5, at_angle(0), at_angle(angle), previous).item() for angle in (170, 120, 70, 30, 10, 0)]
    assert all(further > nearer for further, nearer in pairwise(values))
    for received in (at_angle(70), at_angle(20)):
        z = at_angle(0).requires_grad_()
        (gradient,) = torch.autograd.grad(term(1.0, 0.5, z, received, previous).sum(), z)
        step = torch.zeros_like(z)
        step[0, 1] = 1e-6
        higher, lower = (term(1.0, 0.5, (z + sign * step).detach(), received, previous) for sign in (1, -1))
        assert gradient[0, 1].item() == pytest.approx((higher - lower).item() / 2e-6, rel=1e-6)
        assert gradient[0, 1] < 0, "towards the received, away from the previous"


def test_features_of_zero() -> None:
    """Oracle: a cosine of zero, by the formula's epsilon: log 2 against another zero; and no NaN in the gradient."""
    z = torch.zeros(1, 5, requires_grad=True)
    value = term(1.0, 0.5, z, at_angle(0).float(), torch.zeros(1, 5))
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.isfinite().all()


# The whole method


def plain_moon(model: Model, clients: int, each: int, local: LocalTraining, mu: float, tau: float) -> list[Tensor]:
    """The weights after each of three rounds of the paper's algorithm 1, with as many samples at every client."""
    server = network(model, SHAPE, 10)
    assert isinstance(server, Backbone)
    previous = [copy.deepcopy(server) for _ in range(clients)]
    x, y = normalised(DIGITS.train_x[: clients * each], Digits()), torch.from_numpy(DIGITS.train_y[: clients * each])
    results = []
    for round in (1, 2, 3):
        trained = []
        for client in range(clients):
            mine = slice(client * each, (client + 1) * each)
            module = copy.deepcopy(server).train()
            optimizer = torch.optim.SGD(module.parameters(), lr=local.lr, momentum=local.momentum)
            others = [server.eval(), previous[client].eval()]
            for epoch in range(local.epochs):
                for chosen in plain_batches(order(epoch, round, client, each), local.batch_size, True):
                    z = module.extractor(x[mine][chosen])
                    with torch.no_grad():
                        theirs = [other.extractor(x[mine][chosen]).flatten(1) for other in others]
                    cosines = [nn.functional.normalize(z.flatten(1)) @ nn.functional.normalize(t).T for t in theirs]
                    logits = torch.stack([cosine.diagonal() for cosine in cosines], 1) / tau
                    contrast = nn.functional.cross_entropy(logits, torch.zeros(len(chosen), dtype=torch.int64))
                    loss = nn.functional.cross_entropy(module.classifier(z), y[mine][chosen]) + mu * contrast
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            trained.append(module)
        previous = trained
        vectors = [FlatModel(copy.deepcopy(module), CPU).weights[0] for module in trained]
        results.append(torch.stack(vectors).mean(0))
        means = FlatModel(copy.deepcopy(server), CPU)
        means.weights[0].copy_(results[-1])
        server.load_state_dict(means.module.state_dict())
    return results


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), Projected(MLP((20,)), 12)])
def test_it_is_the_papers_algorithm(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain PyTorch with three networks, over three rounds of two clients; to 1e-4 of what the term changes.

    It tells a previous model that is the client's own from the mean, and evaluation from training mode.
    """
    local = LocalTraining(epochs=2, batch_size=10, lr=0.05, momentum=0.5, vectorize=vectorize)
    settings: dict[str, Any] = {
        "dataset": Few(60),
        "partition": InOrder(),
        "model": model,
        "clients": 2,
        "local": local,
        "rounds": 3,
    }
    algorithm = MOON(5.0, 0.2)
    made = run(tmp_path / "moon.h5", algorithm, **settings)
    plain = run(tmp_path / "plain.h5", **settings)
    layout = FlatModel(network(model, SHAPE, 10), CPU).layout
    expected = layout.canonical(plain_moon(model, 2, 30, local, 5.0, 0.2)[-1]).numpy()
    changed = np.linalg.norm(plain.weights - expected)
    assert changed > 0.01
    assert np.linalg.norm(made.weights - expected) < 1e-3 * changed
    rows = algorithm.previous.rows
    assert not torch.equal(rows[0], rows[1])
    torch.testing.assert_close(layout.canonical((rows[0] + rows[1]) / 2), torch.from_numpy(made.weights))


def test_a_client_alone_is_its_own_previous_model(tmp_path: Path) -> None:
    """Oracle: FedAvg's weights to 1e-4 of the way, and mu log 2 more loss: both others are the same network."""
    settings: dict[str, Any] = {"dataset": Few(40), "model": LeNet(), "clients": 1, "rounds": 3}
    made, plain = run(tmp_path / "moon.h5", MOON(2.0), **settings), run(tmp_path / "plain.h5", **settings)
    start = FlatModel(network(LeNet(), SHAPE, 10), CPU)
    way = np.linalg.norm(plain.weights - start.layout.canonical(start.weights[0]).numpy())
    assert np.linalg.norm(made.weights - plain.weights) < 1e-4 * way
    more = made.rounds["train_loss"] - plain.rounds["train_loss"]
    np.testing.assert_allclose(more, 2 * math.log(2), rtol=1e-4)


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one, each with a previous model of its own; 1e-12 of the way."""
    both = Both(MODELS[model])
    compare(both, MOON(5.0, 0.2), 1e-12, previous=previous_of(both))


@pytest.mark.parametrize("company", [(0,), (0, 7), (0, 1, 2), (1, 2, 3, 4)])
def test_bits_do_not_depend_on_the_company(company: tuple[int, ...]) -> None:
    """Oracle: the same client beside all others, in another row, with odd widths."""
    both = Both(MLP((17, 5)))
    previous = previous_of(both)
    everybody = both.together(MOON(5.0, 0.2), previous=previous).weights.clone()
    some = both.together(MOON(5.0, 0.2), company, previous=previous[list(company)]).weights
    assert torch.equal(some, everybody[list(company)])


def previous_of(both: Both) -> Tensor:
    """[clients, P] near the first weights."""
    noise = torch.randn(len(SIZES), both.start.shape[1], generator=torch.Generator().manual_seed(1))
    previous = both.start + 0.1 * noise
    previous[:, both.plain.model.layout.segments["statistics"]].abs_()
    return previous


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": -1.0}, "mu = -1.0: must be at least 0"),
        ({"mu": math.nan}, "mu = nan: must be at least 0"),
        ({"tau": 0.0}, "tau = 0.0: must be above 0"),
        ({"tau": math.inf}, "tau = inf: must be above 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, float], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        MOON(**options)


def test_a_network_without_features(tmp_path: Path) -> None:
    """Oracle: one line, before anything is written."""
    with pytest.raises(BadInput, match=r"--model: MOON needs one built as Backbone\(extractor, classifier\)"):
        run(tmp_path / "run.h5", MOON(), dataset=Regression(), partition=InOrder(), model=OneVector(), clients=5)
    assert not (tmp_path / "run.h5").exists()
