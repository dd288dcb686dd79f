"""FedNTD: FedAvg without its term, the term's value and slope by hand, and the paper's algorithm in plain PyTorch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedntd import FedNTD
from fedmpi.data import BreastCancer, Digits, Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import CifarCNN, LeNet, Model
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, EACH, SHAPE, Few, in_order
from tests.support.experiments import CPU, network, normalised, order, plain_batches, run
from tests.training.test_sidebyside import MODELS, Both, compare, double

__all__ = ["double"]  # a fixture


class Given:
    """In place of a network: its logits [B, C] are given, those at other weights are these weights."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, x: Tensor) -> Tensor:
        return self.logits

    def at(self, weights: Tensor) -> Given:
        return Given(weights)


def term(method: FedNTD, logits: Tensor, received: Tensor, labels: list[int]) -> Tensor:
    """[B], what the method adds to the cross entropy."""
    y = torch.tensor(labels)
    batch: Any = SimpleNamespace(x=logits, y=y)
    net: Any = Given(logits)
    return method.loss(net, batch, received, {}) - functional.cross_entropy(logits, y, reduction="none")


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [LeNet(), CifarCNN(dropout=0.5)])
def test_without_its_term_it_is_fedavg(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit; with a term too small to matter, to 1e-4 of what a real one changes.

    So the network that runs next to the trained one leaves dropout and statistics alone.
    """
    local = LocalTraining(epochs=2, lr=0.02, momentum=0.5, vectorize=vectorize)
    settings: dict[str, Any] = {"model": model, "dataset": Few(80), "partition": Dirichlet(0.3), "local": local}
    plain, none, hardly, some = (
        run(tmp_path / f"{number}.h5", algorithm, **settings)
        for number, algorithm in enumerate((FedAvg(), FedNTD(0), FedNTD(1e-9), FedNTD(5)))
    )
    assert plain.weights_sha256 == none.weights_sha256
    for column in ("train_loss", "test_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(plain.rounds[column], none.rounds[column])
    changed = np.linalg.norm(some.weights - plain.weights)
    assert changed > 1e-3
    assert np.linalg.norm(hardly.weights - plain.weights) < 1e-4 * changed
    assert some.rounds["bytes_up"].tolist() == plain.rounds["bytes_up"].tolist()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_by_hand(label: int) -> None:
    """Oracle: by hand: over the classes that are not true, 1/2 and 1/2, and 3/4 and 1/4."""
    received = [math.log(3), 0.0]
    received.insert(label, 5.0)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert expected == pytest.approx(0.130812, abs=1e-6)
    for beta in (1.0, 0.3):
        value = term(FedNTD(beta, 1.0), doubles([0, 0, 0]), doubles(received), [label])
        assert value.item() == pytest.approx(beta * expected, rel=1e-12)
    cooler = [7.0 if k == label else 2 * logit for k, logit in enumerate(received)]
    value = term(FedNTD(1.0, 2.0), doubles([0, 0, 0]), doubles(cooler), [label])
    assert value.item() == pytest.approx(4 * expected, rel=1e-12)


def test_its_slope() -> None:
    """Oracle: beta tau (p - q) over the classes that are not true, by NumPy; 0 for the true one."""
    logits, received = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    labels = [0, 1, 2, 3, 4, 2]
    (gradient,) = torch.autograd.grad(term(FedNTD(0.7, 3.0), logits, received, labels).sum(), logits)
    for row, label in enumerate(labels):
        others = [k for k in range(5) if k != label]
        p, q = (torch.softmax(z[row, others] / 3.0, 0) for z in (logits.detach(), received))
        torch.testing.assert_close(gradient[row, others], 0.7 * 3.0 * (p - q), rtol=1e-9, atol=1e-12)
        assert abs(gradient[row, label].item()) < 1e-15


def test_the_first_step_does_not_feel_it(tmp_path: Path) -> None:
    """Oracle: FedAvg's first step, to 1e-5 of the way; the second differs."""
    settings: dict[str, Any] = {"model": LeNet("group"), "dataset": Few(80)}
    for steps in (1, 2):
        local = LocalTraining(steps=steps, vectorize="off")
        made, plain = (
            run(tmp_path / f"{type(one).__name__}-{steps}.h5", one, local=local, **settings)
            for one in (FedNTD(2.0), FedAvg())
        )
        start = FlatModel(network(LeNet("group"), SHAPE, 10), CPU)
        way = np.linalg.norm(plain.weights - start.layout.canonical(start.weights[0]).numpy())
        apart = np.linalg.norm(made.weights - plain.weights)
        assert apart < 1e-5 * way if steps == 1 else apart > 1e-4 * way


def plain_ntd(model: Model, clients: int, local: LocalTraining, beta: float, tau: float) -> Tensor:
    """[P] after three rounds of the paper's algorithm with 30 samples per client."""
    server = network(model, SHAPE, 10)
    x, y = normalised(DIGITS.train_x[: clients * EACH], Digits()), torch.from_numpy(DIGITS.train_y[: clients * EACH])
    for round in (1, 2, 3):
        vectors = []
        for client in range(clients):
            mine, module = slice(client * EACH, (client + 1) * EACH), copy.deepcopy(server).train()
            optimizer = torch.optim.SGD(module.parameters(), lr=local.lr, momentum=local.momentum)
            for epoch in range(local.epochs):
                for chosen in plain_batches(order(epoch, round, client, EACH), local.batch_size, True):
                    labels = y[mine][chosen]
                    with torch.no_grad():
                        old = server.eval()(x[mine][chosen])
                    new = module(x[mine][chosen])
                    loss = functional.cross_entropy(new, labels)
                    is_true = functional.one_hot(labels, 10).bool()
                    p, q = (z[~is_true].view(len(chosen), 9) / tau for z in (new, old))
                    kept = functional.kl_div(p.log_softmax(1), q.softmax(1), reduction="batchmean")
                    optimizer.zero_grad()
                    (loss + beta * tau**2 * kept).backward()
                    optimizer.step()
            vectors.append(FlatModel(module, CPU).weights[0].clone())
        means = FlatModel(copy.deepcopy(server), CPU)
        means.weights[0].copy_(torch.stack(vectors).mean(0))
        server.load_state_dict(means.module.state_dict())
    return means.layout.canonical(means.weights[0])


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_it_is_the_papers_algorithm(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain PyTorch with batch normalisation; to 1e-3 of what the term changes."""
    local = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.5, vectorize=vectorize)
    made, plain = (
        in_order(tmp_path / f"{type(one).__name__}.h5", one, LeNet(), 2, local)
        for one in (FedNTD(3.0, 2.0), FedAvg())
    )
    expected = plain_ntd(LeNet(), 2, local, 3.0, 2.0).numpy()
    changed = np.linalg.norm(plain.weights - expected)
    assert changed > 0.01
    assert np.linalg.norm(made.weights - expected) < 1e-3 * changed


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one; 1e-12 of the way."""
    compare(Both(MODELS[model]), FedNTD(2.0, 1.5), 1e-12)


def test_two_classes(tmp_path: Path) -> None:
    """Oracle: the message; without the term there is nothing to refuse."""
    message = r"--algorithm.beta = 1.0: must be 0 with 2 classes, because the term is 0 with fewer than 3"
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "none.h5", FedNTD(), dataset=BreastCancer())
    run(tmp_path / "run.h5", FedNTD(0.0), dataset=BreastCancer())


@pytest.mark.parametrize(("options", "message"), [({"beta": -1.0}, "at least 0"), ({"tau": 0.0}, "above 0")])
def test_options_that_cannot_be(options: dict[str, float], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=f"must be {message}"):
        FedNTD(**options)
