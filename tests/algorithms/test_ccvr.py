"""CCVR beside its base method, NumPy's moments of pooled features, and PyTorch's training of one layer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi import randomness
from fedmpi.algorithms import ccvr
from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.ccvr import CCVR, moments, root
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddf import FedDF
from fedmpi.algorithms.fednova import FedNova
from fedmpi.algorithms.fedper import FedPer
from fedmpi.algorithms.ifca import IFCA
from fedmpi.algorithms.knnper import KNNPer
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.data import Digits, Dirichlet, Partition
from fedmpi.errors import BadInput
from fedmpi.models import LeNet, Model
from fedmpi.models.mlp import MLP
from fedmpi.policies.server_optimizers import Momentum
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.support.digits import DIGITS, SHAPE, Few
from tests.support.experiments import SEED, Cut, network, normalised, run
from tests.support.task_data import Diabetes

SIZES = (31, 47, 18, 53, 40)
SETTINGS: dict[str, Any] = {
    "dataset": Few(150),
    "partition": Dirichlet(0.3),
    "model": MLP(hidden=(20,)),
    "clients": 5,
    "rounds": 2,
}


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize(
    ("make", "more"),
    [
        (FedAvg, {"model": LeNet(), "server_optimizer": Momentum()}),
        (FedAvg, {"local": LocalTraining(epochs=1, vectorize=3)}),
        (SCAFFOLD, {}),
        (FedNova, {"local": LocalTraining(epochs=1, momentum=0.5)}),
        (MOON, {"model": LeNet(), "rounds": 3, "local": LocalTraining(epochs=1)}),
    ],
)
def test_the_rounds_are_those_of_the_base(
    make: type[Algorithm], more: dict[str, Any], epochs: int, tmp_path: Path
) -> None:
    """Oracle: the base method, bit for bit, traffic included; without epochs its accuracy, too."""
    made = run(tmp_path / "made.h5", CCVR(make(), epochs=epochs), **SETTINGS | more)
    plain = run(tmp_path / "plain.h5", make(), **SETTINGS | more)
    assert made.weights_sha256 == plain.weights_sha256
    for column in ("train_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    np.testing.assert_array_equal(made.rounds["uncalibrated_accuracy"], plain.rounds["test_accuracy"])
    assert (made.rounds["test_loss"] == plain.rounds["test_loss"]).all() == (epochs == 0)


class Moments:
    """The count, sum, sum of outer products, mean and covariance of each class that were asked for, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, NDArray, NDArray]] = []

        def noting(count: int, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
            mean, covariance = moments(count, total, squares)
            self.seen.append((count, mean.numpy(), covariance.numpy()))
            return mean, covariance

        patch.setattr(ccvr, "moments", noting)


def features(model: Model, x: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[n, f] of digits: what the last layer of the network gets before the first round."""
    module, seen = network(model, SHAPE, 10).eval(), []
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module(normalised(x, Digits()))
    return np.asarray(seen[0].double().numpy())


@pytest.mark.parametrize("partition", [Cut(*SIZES), Cut(sum(SIZES)), Dirichlet(0.1)])
@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [MLP(hidden=(20,)), LeNet()])
def test_moments(
    model: Model, partition: Partition, vectorize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: NumPy's mean and covariance of all clients' features, for several partitions, one client among them."""
    seen, count = Moments(monkeypatch), sum(SIZES)
    clients = len(partition.sizes) if isinstance(partition, Cut) else 5
    local = LocalTraining(epochs=1, vectorize=vectorize)
    settings = {
        **SETTINGS,
        "dataset": Few(count),
        "rounds": 1,
        "partition": partition,
        "local": local,
        "model": model,
    }
    run(tmp_path / "made.h5", CCVR(epochs=1), **{**settings, "clients": clients})
    z, y = features(model, DIGITS.train_x[:count]), DIGITS.train_y[:count]
    assert len(seen.seen) == 20, "ten classes before the first round and after it"
    for label, (number, mean, covariance) in enumerate(seen.seen[:10]):
        own = z[y == label]
        assert number == len(own)
        np.testing.assert_allclose(mean, own.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(covariance, np.cov(own.T), rtol=1e-5, atol=1e-6)
    assert np.abs(seen.seen[10][1] - seen.seen[0][1]).max() > 1e-3, "features of the model of the round"


def test_every_client_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same means; covariances times 2 (n - 1) / (2 n - 1)."""
    seen = Moments(monkeypatch)
    for copies in (1, 2):
        more = {"dataset": Few(100, copies), "partition": Cut(*[20] * 5 * copies), "clients": 5 * copies}
        run(tmp_path / f"{copies}.h5", CCVR(epochs=1), **{**SETTINGS, **more, "rounds": 1})
    for (n, mean, covariance), (twice, same, other) in zip(seen.seen[:10], seen.seen[20:30], strict=True):
        assert twice == 2 * n
        np.testing.assert_allclose(same, mean, rtol=1e-12)
        np.testing.assert_allclose(other, covariance * 2 * (n - 1) / (2 * n - 1), rtol=1e-9, atol=1e-12)


def test_moments_by_hand() -> None:
    """Oracle: np.cov, where the mean is large beside the deviation."""
    z = torch.from_numpy(np.random.default_rng(1).normal(100, 0.1, (50, 4)))
    mean, covariance = moments(50, z.sum(0), z.T @ z)
    np.testing.assert_allclose(mean, z.numpy().mean(0))
    np.testing.assert_allclose(covariance, np.cov(z.numpy().T), rtol=1e-6)


def test_root() -> None:
    """Oracle: its square, also of covariances of few samples, of equal ones, and of one that is no covariance."""
    rng = np.random.default_rng(2)
    for count in (3, 100):
        covariance = torch.from_numpy(np.cov(rng.normal(size=(count, 7)).T))
        factor = root(covariance)
        ridge = 1e-6 * covariance.trace() / 7
        np.testing.assert_allclose(factor @ factor.T, covariance + ridge * torch.eye(7), atol=1e-12)
    assert not root(torch.zeros(3, 3)).any()
    rounded = torch.diag(torch.tensor([1.0, 1.0, -1e-5]).double())
    assert root(rounded).isfinite().all()


def given(layout: Layout, local: LocalTraining) -> Any:
    """What `fit` needs of a federation."""
    return SimpleNamespace(
        layout=layout, local=local, stream=lambda purpose, number: randomness.stream(SEED, purpose, 0, number)
    )


@pytest.mark.parametrize("bias", [True, False])
def test_fit(bias: bool) -> None:
    """Oracle: torch.optim.SGD on the last layer; all other weights stay."""
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias))
    layout, rng = Layout.of(module), np.random.default_rng(4)
    z, y = torch.from_numpy(rng.normal(size=(23, 5))).float(), torch.from_numpy(rng.integers(0, 3, 23))
    weights = torch.zeros(layout.size)
    for name, view in layout.views(weights).items():
        view.copy_(module.state_dict()[name])
    before = weights.clone()
    CCVR(epochs=3, lr=0.2).fit(given(layout, LocalTraining(batch_size=10)), weights, z, y)
    optimizer = torch.optim.SGD(module[2].parameters(), lr=0.2)
    for epoch in range(3):
        order = torch.from_numpy(randomness.stream(SEED, "CCVR order", 0, epoch).permutation(23))
        for some in order.split(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module[2](z[some]), y[some]).backward()
            optimizer.step()
    for name, view in layout.views(weights).items():
        np.testing.assert_allclose(view, module.state_dict()[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(view, layout.views(before)[name]) == name.startswith("0.")


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the moments of many drawn features. A class with fewer than two samples is left out."""
    seen, fitted = Moments(monkeypatch), []
    monkeypatch.setattr(CCVR, "fit", lambda method, fed, weights, z, labels: fitted.append((z, labels)))
    few = {**SETTINGS, "dataset": Few(14), "partition": Cut(5, 9), "clients": 2, "rounds": 1}
    run(tmp_path / "few.h5", CCVR(samples=20_000), **few)
    counts = np.bincount(DIGITS.train_y[:14], minlength=10)
    assert 0 < (counts < 2).sum() < 10
    z, labels = fitted[0]
    assert np.unique(labels).tolist() == np.flatnonzero(counts >= 2).tolist()
    for (_, mean, covariance), label in zip(seen.seen, np.unique(labels).tolist(), strict=False):
        own = z[labels == label].double().numpy()
        assert len(own) == 20_000
        deviation = np.sqrt(covariance.diagonal())
        assert (np.abs(own.mean(0) - mean) < 5 * deviation / np.sqrt(20_000) + 1e-3 * deviation.mean()).all()
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=0.05 * covariance.diagonal().max())
    assert not torch.equal(fitted[0][0][0], fitted[1][0][0])


def test_calibration_helps(tmp_path: Path) -> None:
    """On clients with few classes, the calibrated layer is better by far."""
    local = LocalTraining(epochs=2)
    settings: dict[str, Any] = {"partition": Dirichlet(0.1), "model": MLP(), "clients": 20, "cohort": 20}
    made = run(tmp_path / "made.h5", CCVR(), rounds=2, local=local, **settings)
    print(made.rounds["test_accuracy"], made.rounds["uncalibrated_accuracy"])
    assert made.rounds["test_accuracy"][-1] > made.rounds["uncalibrated_accuracy"][-1] + 0.1


class Rectified(Model):
    """Does not end in a fully connected layer."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), nn.ReLU())


class FrozenHead(Model):
    """Its last layer is not trained."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, outputs).requires_grad_(False))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": Rectified()}, "needs a Backbone or nn.Sequential that ends in a fully connected layer"),
        ({"model": FrozenHead()}, "needs a last layer that is trained"),
        ({"dataset": Diabetes()}, "needs samples with classes"),
    ],
)
def test_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "made.h5", CCVR(), **settings)


@pytest.mark.parametrize(
    ("make", "said"),
    [(IFCA, "only averages"), (FedPer, "only averages"), (FedDF, "only averages"), (KNNPer, "one global model")],
)
def test_refused_bases(make: type[Algorithm], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        CCVR(make())
