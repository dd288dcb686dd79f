"""FedDBE: FedAvg where neither shift nor term plays a part, both by hand, and the whole method in plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddbe import FedDBE
from fedmpi.data import Digits, Dirichlet, Users
from fedmpi.errors import BadInput
from fedmpi.federation.federation import Federation
from fedmpi.federation.local import Trained
from fedmpi.models import MLP, CifarCNN, LeNet, Model
from fedmpi.models._layers import before_last_layer
from fedmpi.models._personal import Shifted
from fedmpi.policies import RoundRobin
from fedmpi.policies.privacy import CentralDP
from fedmpi.tasks import LanguageModel
from fedmpi.training.block import WHOLE, Phase
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few, in_order
from tests.support.experiments import CPU, Cut, network, normalised, order, plain_batches, run, state, tensors
from tests.support.task_data import Characters
from tests.training.test_sidebyside import MODELS, SIZES, Both, compare, double

__all__ = ["double"]  # a fixture


class Extended(Model):
    """Another network with FedDBE's shift."""

    def __init__(self, over: Model) -> None:
        self.over = over

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return FedDBE().extend(self.over.build(shape, outputs), torch.zeros(2, *shape))


def shared(model: Model) -> list[tuple[str, str]]:
    """The names of the shared tensors: in FedDBE's network, and in the network that it extends."""
    ours, theirs = (state(network(one, SHAPE, 10)) for one in (Extended(model), model))
    return list(zip([name for name in ours if not name.endswith("shift")], theirs, strict=True))


UNEQUAL: dict[str, Any] = {"dataset": Few(150), "partition": Dirichlet(0.3), "clients": 5}
TRAININGS: list[tuple[Model, dict[str, Any]]] = [
    (LeNet(), {"momentum": 0.9, "weight_decay": 0.01}),
    (MLP((16, 8), norm="batch"), {"optimizer": "adam", "lr": 0.01}),
    (CifarCNN(dropout=0.5), {"lr": 0.01, "clip_norm": 1.0}),
]


@pytest.mark.parametrize("vectorize", ["off", 4])
@pytest.mark.parametrize(("model", "local"), TRAININGS)
def test_without_shift_and_term_it_is_fedavg(
    model: Model, local: dict[str, Any], vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: FedAvg, bit for bit, if the shift is not trained in later rounds either; clients of unequal sizes."""
    train = Federation.train

    def without_shift(
        fed: Federation, block: Any, start: Tensor, hooks: Any, phase: Phase = WHOLE, **v: Any
    ) -> Trained:
        if isinstance(hooks, FedDBE):
            shift, size = hooks.split(fed.layout)[0], fed.layout.size
            phase = Phase(columns=(slice(0, shift.start), slice(shift.stop, size)))
        return train(fed, block, start, hooks, phase, **v)

    monkeypatch.setattr(Federation, "train", without_shift)
    settings = {**UNEQUAL, "model": model, "rounds": 3}
    settings["local"] = LocalTraining(epochs=1, vectorize=vectorize, **local)
    made = run(tmp_path / "made.h5", FedDBE(kappa=0.0), **settings)
    plain = run(tmp_path / "plain.h5", **settings)
    for mine, name in shared(model):
        assert torch.equal(tensors(made)[mine], tensors(plain)[name]), name
    for ours, theirs in {
        "global_accuracy": "test_accuracy",
        "test_loss": "test_loss",
        "train_loss": "train_loss",
    }.items():
        np.testing.assert_array_equal(made.rounds[ours], plain.rounds[theirs])


@pytest.mark.parametrize(("model", "local"), TRAININGS)
def test_the_first_round_is_fedavgs(model: Model, local: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: FedAvg with all clients, bit for bit; no client has a shift yet, but all have one after the second."""
    algorithm, first = FedDBE(), FedDBE()
    settings = {**UNEQUAL, "model": model, "local": LocalTraining(epochs=1, **local)}
    made = run(tmp_path / "made.h5", first, **settings, cohort=2, sampler=RoundRobin())
    plain = run(tmp_path / "plain.h5", FedAvg(), **settings)
    for mine, name in shared(model):
        assert torch.equal(tensors(made)[mine], tensors(plain)[name]), name
    assert made.clients["client"].tolist() == [0, 1, 2, 3, 4]
    assert not any(row.any() for row in first.kept.rows.values())
    run(tmp_path / "two.h5", algorithm, **settings, rounds=2)
    assert all(row.any() for row in algorithm.kept.rows.values())
    assert not tensors(made)["classifier.shift"].any()


def test_the_mean_of_all_clients(tmp_path: Path) -> None:
    """Oracle: features of each trained network in PyTorch; weights are numbers of samples; it stays the same."""
    algorithm, later, sizes = FedDBE(), FedDBE(), (20, 50, 30)
    settings: dict[str, Any] = {"model": MLP((7,)), "partition": Cut(*sizes), "clients": 3}
    local = LocalTraining(epochs=1, batch_size=100)
    run(tmp_path / "run.h5", algorithm, **settings, local=local)
    run(tmp_path / "later.h5", later, **settings, local=local, rounds=3)
    x, y = normalised(DIGITS.train_x[:100], Digits()), torch.from_numpy(DIGITS.train_y[:100])
    total = torch.zeros(7)
    for own, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        parts = before_last_layer(network(MLP((7,)), SHAPE, 10))
        assert parts
        nn.functional.cross_entropy(parts(own), labels).backward()
        torch.optim.SGD(parts.parameters(), local.lr).step()
        total += parts.extractor(own).sum(0).detach()
    torch.testing.assert_close(algorithm.common, total / 100, rtol=1e-4, atol=1e-5)
    assert torch.equal(later.common, algorithm.common)


def test_a_shift_is_a_personal_bias() -> None:
    """Oracle: logits that differ by W t."""
    layer = nn.Linear(5, 3)
    shifted = Shifted(layer)
    z = torch.randn(4, 5)
    assert torch.equal(shifted(z), layer(z))
    with torch.no_grad():
        shifted.shift.copy_(torch.arange(5.0))
        torch.testing.assert_close(shifted(z) - layer(z), (layer.weight @ shifted.shift).expand(4, -1))


def test_values_of_the_loss() -> None:
    """Oracle: by hand, over the samples without padding: kappa / 2 mean_f (m - c)^2, and its gradient; zero at c."""
    z = torch.tensor([[1.0, 2], [3, 0], [7, 7]], dtype=torch.float64, requires_grad=True)
    net: Any = SimpleNamespace(features=lambda x: x, classify=lambda x: 0 * x)
    batch: Any = SimpleNamespace(x=z, y=torch.tensor([0, 1, 0]), real=torch.tensor([1.0, 1, 0], dtype=torch.float64))
    common = torch.tensor([1.0, 4], dtype=torch.float64)
    apart = FedDBE(kappa=6.0).loss(net, batch, z, {"common": common}) - np.log(2)
    assert apart.tolist() == pytest.approx([3 * (1 + 9) / 2] * 3)
    (gradient,) = torch.autograd.grad(apart[:2].mean(), z)
    torch.testing.assert_close(gradient, torch.tensor([[1.5, -4.5], [1.5, -4.5], [0, 0]], dtype=torch.float64))
    at_c = FedDBE(kappa=6.0).loss(net, batch, z, {"common": torch.tensor([2.0, 1], dtype=torch.float64)})
    assert at_c.tolist() == pytest.approx([np.log(2)] * 3)
    (gradient,) = torch.autograd.grad(at_c.sum(), z)
    assert not gradient.any()


def plain_feddbe(
    model: Model, clients: int, local: LocalTraining, kappa: float
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The server's tensors and the clients' shifts after three rounds in PyTorch."""
    server = before_last_layer(network(model, SHAPE, 10))
    assert server
    x, y = normalised(DIGITS.train_x[: 30 * clients], Digits()), torch.from_numpy(DIGITS.train_y[: 30 * clients])
    normalises = any("running_mean" in name for name in state(server))
    assert isinstance(server.classifier, nn.Linear)
    shifts = [torch.zeros(server.classifier.in_features, requires_grad=True) for _ in range(clients)]
    common = torch.zeros(server.classifier.in_features)
    for round in (1, 2, 3):
        trained, means = [], []
        for client, shift in enumerate(shifts):
            mine, parts = slice(30 * client, 30 * client + 30), copy.deepcopy(server).train()
            learnt = [*parts.parameters(), *([shift] if round > 1 else [])]
            optimizer = torch.optim.SGD(learnt, local.lr, momentum=local.momentum)
            for epoch in range(local.epochs):
                for chosen in plain_batches(order(epoch, round, client, 30), local.batch_size, normalises):
                    z = parts.extractor(x[mine][chosen])
                    loss = nn.functional.cross_entropy(parts.classifier(z + shift), y[mine][chosen])
                    if round > 1:
                        loss = loss + kappa * (0.5 * (z.mean(0) - common) ** 2).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            trained.append(state(parts))
            with torch.no_grad():
                means.append(copy.deepcopy(parts).eval().extractor(x[mine]).mean(0))
        if round == 1:
            common = torch.stack(means).mean(0)
        server.load_state_dict(
            {n: torch.stack([one[n] for one in trained]).mean(0) for n in trained[0]}, strict=False
        )
    return state(server), [shift.detach() for shift in shifts]


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize(("model", "clients"), [(LeNet(), 2), (MLP((33, 17)), 2), (MLP((7,)), 1)])
@pytest.mark.parametrize("kappa", [0.0, 3.0])
def test_plain_pytorch(kappa: float, model: Model, clients: int, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: networks and shifts in PyTorch, over three rounds, to 1e-3 of the way; batches of 8, 8, 8 and 6."""
    local = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.5, vectorize=vectorize)
    algorithm = FedDBE(kappa)
    made = in_order(tmp_path / "run.h5", algorithm, model, clients, local)
    server, shifts = plain_feddbe(model, clients, local, kappa)
    start, found = state(network(model, SHAPE, 10)), tensors(made)
    for (mine, name), expected in zip(shared(model), server.values(), strict=True):
        assert (found[mine] - expected).norm() <= 1e-3 * (expected - start[name]).norm() + 1e-6, name
    for client, shift in enumerate(shifts):
        assert shift.norm() > 0.01
        assert (algorithm.kept.rows[client] - shift).norm() <= 1e-3 * shift.norm()


@pytest.mark.parametrize("model", ["mlp", "mlp batch", "lenet batch", "dropout"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one, with batches of unequal sizes; 1e-12 of the way."""
    both = Both(Extended(MODELS[model]), momentum=0.5)
    common = torch.randn(len(SIZES), both.plain.feature_shape.numel(), generator=torch.Generator().manual_seed(1))
    compare(both, FedDBE(kappa=2.0), 1e-12, common=common)


def test_who_is_evaluated_with_what(tmp_path: Path) -> None:
    """Oracle: the network with the only client's shift, whose test samples are the whole test set; and without."""
    algorithm = FedDBE()
    made = run(tmp_path / "run.h5", algorithm, model=LeNet(), dataset=Few(40), clients=1, rounds=4)
    module = network(Extended(LeNet()), SHAPE, 10)
    flat = FlatModel(module, CPU)
    module.load_state_dict(tensors(made), strict=False)
    x, y = normalised(DIGITS.test_x, Digits()), torch.from_numpy(DIGITS.test_y)
    found = []
    for shift in (algorithm.kept.rows[0], torch.zeros_like(algorithm.kept.rows[0])):
        flat.weights[0, algorithm.own] = shift
        with torch.no_grad():
            found.append(float((module.eval()(x).argmax(1) == y).double().mean()))
    assert made.rounds["test_accuracy"][-1] == pytest.approx(found[0], abs=1e-6)
    assert made.rounds["global_accuracy"][-1] == pytest.approx(found[1], abs=1e-6)
    assert found[0] != found[1]


def test_privacy_is_refused(tmp_path: Path) -> None:
    """Oracle: one line."""
    with pytest.raises(BadInput, match="algorithm = FedDBE: must be a method whose server sees only one mean"):
        run(tmp_path / "run.h5", FedDBE(), privacy=CentralDP(), weighting="uniform")


def test_features_that_are_no_vectors(tmp_path: Path) -> None:
    """Oracle: the message."""

    class Written(Model):
        def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
            return nn.Sequential(nn.Embedding(self.text(shape), 12), nn.Linear(12, outputs))

    class Rectified(Model):
        def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), nn.ReLU())

    with pytest.raises(BadInput, match="--model: FedDBE needs a Backbone or nn"):
        run(tmp_path / "run.h5", FedDBE(), model=Rectified())
    written: dict[str, Any] = {"dataset": Characters(), "partition": Users(), "model": Written()}
    with pytest.raises(
        BadInput, match=r"--model: FedDBE needs one feature vector per sample, not features \[\d+, \d+\]"
    ):
        run(tmp_path / "run.h5", FedDBE(), **written, task=LanguageModel())
