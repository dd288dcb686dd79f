"""APFL: FedAvg and LocalOnly as its two halves, a step by hand, and the whole method in plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import results
from fedmpi.algorithms.apfl import APFL, DECAY
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.data import Digits, Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, LeNet, Model
from fedmpi.models._personal import Mix
from fedmpi.policies import RoundRobin
from fedmpi.tasks import Regression
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few, in_order
from tests.support.experiments import CPU, network, normalised, order, plain_batches, run, state, tensors
from tests.training.test_sidebyside import MODELS, Both, compare, double

__all__ = ["double"]  # a fixture

UNEQUAL: dict[str, Any] = {"dataset": Few(150), "partition": Dirichlet(0.3), "clients": 5, "rounds": 3}


class Extended(Model):
    """Another network, shared and as the client's own."""

    def __init__(self, over: Model) -> None:
        self.over = over

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return APFL().extend(self.over.build(shape, outputs), torch.zeros(2, *shape))


def client_model(algorithm: APFL, model: Model, client: int, made: results.Run) -> dict[str, Tensor]:
    """The tensors of a client's model after its last round, by name."""
    flat = FlatModel(network(Extended(model), SHAPE, 10), CPU)
    flat.module.load_state_dict(tensors(made), strict=False)
    flat.weights[0, torch.from_numpy(np.asarray(algorithm.own))] = algorithm.kept.rows[client]
    return {name: tensor.clone() for name, tensor in state(flat.module).items()}


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize(
    ("model", "local"),
    [
        (LeNet(), {"momentum": 0.9, "weight_decay": 0.01}),
        (MLP((33, 17)), {}),
        (MLP((16, 8), norm="batch"), {"optimizer": "adam", "lr": 0.01}),
        (CifarCNN(dropout=0.5), {"lr": 0.01, "augmentation": "flip"}),
    ],
)
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_global_model_is_fedavgs(
    adaptive: bool, model: Model, local: dict[str, Any], vectorize: Any, tmp_path: Path
) -> None:
    """Oracle: FedAvg, bit for bit, in weights, accuracy and bytes; clients of unequal sizes."""
    settings: dict[str, Any] = {
        **UNEQUAL,
        "model": model,
        "local": LocalTraining(epochs=1, vectorize=vectorize, **local),
    }
    made = run(tmp_path / "apfl.h5", APFL(adaptive=adaptive), **settings)
    plain = run(tmp_path / "plain.h5", FedAvg(), **settings)
    for name, tensor in tensors(plain).items():
        assert torch.equal(tensors(made)[f"shared.{name}"], tensor), name
    for name, column in {
        "global_accuracy": "test_accuracy",
        "bytes_up": "bytes_up",
        "bytes_down": "bytes_down",
    }.items():
        np.testing.assert_array_equal(made.rounds[name], plain.rounds[column])


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_without_the_local_model(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg's accuracy: clients' test samples are the whole test set together. The local model stays."""
    local = LocalTraining(epochs=1, momentum=0.5, vectorize=vectorize)
    settings: dict[str, Any] = {**UNEQUAL, "model": LeNet(), "local": local}
    algorithm = APFL(0.0, adaptive=False)
    made, plain = run(tmp_path / "apfl.h5", algorithm, **settings), run(tmp_path / "plain.h5", **settings)
    for column in ("test_accuracy", "test_loss"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    first = state(network(LeNet(), SHAPE, 10))
    for client in range(5):
        found = client_model(algorithm, LeNet(), client, made)
        assert all(torch.equal(found[f"own.{n}"], t) for n, t in first.items() if "running" not in n)
    assert set(made.clients["alpha"]) == {0.0}


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
def test_the_local_model_alone(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: LocalOnly, bit for bit, in weights and accuracy."""
    local = LocalTraining(epochs=1, momentum=0.5, weight_decay=0.01, vectorize=vectorize)
    settings: dict[str, Any] = {**UNEQUAL, "model": model, "local": local}
    algorithm, alone = APFL(1.0, adaptive=False), LocalOnly()
    made, plain = run(tmp_path / "apfl.h5", algorithm, **settings), run(tmp_path / "plain.h5", alone, **settings)
    np.testing.assert_array_equal(made.rounds["test_accuracy"], plain.rounds["test_accuracy"])
    for client in range(5):
        found, module = client_model(algorithm, model, client, made), network(model, SHAPE, 10)
        FlatModel(module, CPU).weights[0] = alone.own.rows[client]
        for name, tensor in state(module).items():
            assert torch.equal(found[f"own.{name}"], tensor), name


def test_a_step_by_hand() -> None:
    """Oracle: outputs w = 0 and v = 1, target 1, half the square: v gains .025 for a rate of .1, and alpha .05."""
    shared, own, mix = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True), Mix()
    nn.init.constant_(mix.alpha, 0.5)

    def output(part: str, *inputs: Tensor) -> Tensor:
        return mix(*inputs) if part == "mix" else {"shared": shared, "own": own}[part] * 1

    algorithm = APFL()
    algorithm.task = Regression()
    batch: Any = SimpleNamespace(x=torch.zeros(1, 1), y=torch.ones(1, 1))
    net: Any = SimpleNamespace(run=output)
    (algorithm.loss(net, batch, torch.zeros(1), {}).sum() / 2).backward()
    for parameter, expected in ((shared, 0.1), (own, 1.025), (mix.alpha, 0.55)):
        assert parameter.grad is not None
        assert (parameter - 0.1 * parameter.grad).item() == pytest.approx(expected, rel=1e-6)


def plain_apfl(
    model: Model, clients: int, local: LocalTraining, alpha: float, adaptive: bool
) -> tuple[nn.Module, list[nn.Module], list[float]]:
    """The server's model, and the clients' models v and alphas, after three rounds in PyTorch."""
    server, entropy = network(model, SHAPE, 10), nn.functional.cross_entropy
    own, alphas = [copy.deepcopy(server) for _ in range(clients)], [alpha] * clients
    x, y = normalised(DIGITS.train_x[: 30 * clients], Digits()), torch.from_numpy(DIGITS.train_y[: 30 * clients])
    normalises = any("running_mean" in name for name in state(server))
    for round in (1, 2, 3):
        trained = []
        for client, v in enumerate(own):
            mine, w = slice(30 * client, 30 * client + 30), copy.deepcopy(server).train()
            v.train()
            if adaptive:
                slope, before = 0.0, [copy.deepcopy(each) for each in (v, w)]
                for chosen in plain_batches(order(0, round, client, 30, phase="gradient "), 10, normalises):
                    share = torch.tensor(alphas[client], requires_grad=True)
                    out_v, out_w = (each(x[mine][chosen]).detach() for each in before)
                    loss = entropy(share * out_v + (1 - share) * out_w, y[mine][chosen], reduction="sum")
                    slope += torch.autograd.grad(loss, share)[0].item() / 30
                alphas[client] = min(max(alphas[client] - local.lr * (slope + DECAY * alphas[client]), 0.0), 1.0)
            share = torch.tensor(alphas[client])
            optimizers = [torch.optim.SGD(each.parameters(), lr=local.lr, momentum=local.momentum) for each in (w, v)]
            for epoch in range(local.epochs):
                for chosen in plain_batches(order(epoch, round, client, 30), local.batch_size, normalises):
                    out_w, out_v, labels = w(x[mine][chosen]), v(x[mine][chosen]), y[mine][chosen]
                    mixed = share * out_v + (1 - share) * out_w.detach()
                    for optimizer, output in zip(optimizers, (out_w, mixed), strict=True):
                        optimizer.zero_grad()
                        entropy(output, labels).backward()
                        optimizer.step()
            trained.append(state(w))
        means = {name: torch.stack([one[name] for one in trained]).mean(0) for name in trained[0]}
        server.load_state_dict(means, strict=False)
    return server, own, alphas


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((33, 17))])
@pytest.mark.parametrize(("alpha", "adaptive"), [(0.25, False), (0.5, True)])
def test_plain_pytorch(alpha: float, adaptive: bool, model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks in PyTorch with two optimizers; over three rounds of two clients, to 1e-3 of the way."""
    local = LocalTraining(epochs=2, batch_size=10, lr=0.05, momentum=0.5, vectorize=vectorize)
    algorithm = APFL(alpha, adaptive)
    made = in_order(tmp_path / "run.h5", algorithm, model, 2, local)
    server, own, alphas = plain_apfl(model, 2, local, alpha, adaptive)
    np.testing.assert_allclose(made.clients["alpha"][-2:], alphas, rtol=1e-4)
    assert (made.clients["alpha"] != alpha).all() == adaptive
    first = state(network(model, SHAPE, 10))
    for client, module in enumerate(own):
        found = client_model(algorithm, model, client, made)
        for part, expected in (("shared", server), ("own", module)):
            for name, tensor in state(expected).items():
                way = (tensor - first[name]).norm()
                assert (found[f"{part}.{name}"] - tensor).norm() <= 1e-3 * way + 1e-6, (part, name)
        assert found["mix.alpha"].item() == pytest.approx(alphas[client], rel=1e-4)
    batches = 3
    assert set(made.clients["steps"]) == {2 * batches + adaptive * batches}


def test_the_mixture_is_evaluated(tmp_path: Path) -> None:
    """Oracle: the network with the only client's part, whose test samples are the whole test set."""
    algorithm = APFL(0.7)
    made = run(tmp_path / "run.h5", algorithm, model=LeNet(), dataset=Few(40), clients=1, rounds=2)
    module = network(Extended(LeNet()), SHAPE, 10)
    module.load_state_dict(client_model(algorithm, LeNet(), 0, made), strict=False)
    x, y = normalised(DIGITS.test_x, Digits()), torch.from_numpy(DIGITS.test_y)
    with torch.no_grad():
        accuracy = float((module.eval()(x).argmax(1) == y).double().mean())
    assert made.rounds["test_accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)
    assert made.rounds["test_accuracy"][-1] != made.rounds["global_accuracy"][-1]


def test_who_never_came(tmp_path: Path) -> None:
    """Oracle: the initial model and alpha, of two of six clients; before the first round both models are one."""
    algorithm = APFL(0.25)
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
    assert (algorithm.kept.initial == 0.25).sum() == 1
    assert tensors(made)["mix.alpha"].item() == 0


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet batch", "dropout"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one; 1e-12 of the way."""
    both = Both(Extended(MODELS[model]), momentum=0.5)
    (alpha,) = [entry.columns for entry in both.plain.model.layout.entries if entry.name == "mix.alpha"]
    both.start[:, alpha] = 0.3
    compare(both, APFL(), 1e-12)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_shares_that_cannot_be(alpha: float) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=f"alpha = {alpha}: must be between 0 and 1"):
        APFL(alpha)


def test_no_clipping(tmp_path: Path) -> None:
    """Oracle: one line."""
    with pytest.raises(BadInput, match=r"local.clip_norm = 1.0: must be null with APFL"):
        run(tmp_path / "run.h5", APFL(), local=LocalTraining(clip_norm=1.0))
