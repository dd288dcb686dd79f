"""kNN-Per: FedAvg's training, and predictions that NumPy computes from each client's own samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import FedAvg, KNNPer
from fedmpi.data import Digits, Dirichlet, make_split
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, Model
from fedmpi.models._layers import Backbone, before_last_layer
from fedmpi.policies import Uniform
from fedmpi.training.samples import Batch
from tests.support.experiments import SEED, network, normalised, read, run, state, tensors


class Given:
    """A network whose features are its inputs, and whose logits are given."""

    def __init__(self, *probabilities: float) -> None:
        self.logits = torch.tensor(probabilities).log()

    def features(self, x: Tensor) -> Tensor:
        return x

    def classify(self, features: Tensor) -> Tensor:
        return self.logits.expand(len(features), -1)


def probabilities(method: KNNPer, net: Given, x: Tensor, known: Tensor, labels: list[int]) -> Tensor:
    batch = Batch(x, torch.zeros(len(x)), torch.arange(len(x)))
    given: Any = net
    return method.interpolate(given, batch, {"features": known, "labels": torch.tensor(labels)}).exp()


def test_two_neighbours_by_hand() -> None:
    """Oracle: squared distances 0 and f scale ln 2 weigh 2 : 1; mixed half and half with (0.2, 0.8)."""
    x, far = torch.zeros(1, 3), torch.full((1, 3), float(np.sqrt(2.0 * np.log(2))))
    known = torch.cat([far, x])
    only = probabilities(KNNPer(share=1.0, scale=2.0), Given(0.2, 0.8), x, known, [1, 0])
    torch.testing.assert_close(only, torch.tensor([[2 / 3, 1 / 3]]))
    mixed = probabilities(KNNPer(share=0.5, scale=2.0), Given(0.2, 0.8), x, known, [1, 0])
    torch.testing.assert_close(mixed, torch.tensor([[1.3 / 3, 1.7 / 3]]))


def test_a_network_that_is_certain() -> None:
    """Oracle: by hand: log(e^-200 / 2) for a class that no neighbour has, which is below float32's numbers."""
    net, x, labels = Given(1, 1, 1), torch.ones(1, 4), torch.tensor([0])
    net.logits = torch.tensor([0.0, -200, -300])
    given: Any = net
    for share, expected in (0.5, [0, -200 - np.log(2), -300 - np.log(2)]), (0.0, [0, -200, -300]):
        batch = Batch(x, torch.zeros(1), torch.arange(1))
        found = KNNPer(share=share).interpolate(given, batch, {"features": x, "labels": labels})
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


def test_equal_neighbours_and_none() -> None:
    """Oracles: label shares among the first ones; without any sample, the model's own probabilities."""
    x, net = torch.ones(2, 4), Given(0.1, 0.2, 0.7)
    found = probabilities(KNNPer(share=1.0, neighbours=4), net, x, torch.ones(6, 4), [2, 0, 0, 1, 1, 1])
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.25, 0.25]] * 2))
    found = probabilities(KNNPer(share=1.0), net, x, torch.empty(0, 4), [])
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.2, 0.7]] * 2))
    own = torch.randn(20, 4)
    labels = torch.arange(20) % 3
    found = probabilities(KNNPer(share=1.0, neighbours=1), net, own, own, labels.tolist())
    assert torch.equal(found, nn.functional.one_hot(labels).float())


@pytest.mark.parametrize("model", [MLP((16,), norm="batch"), LeNet()])
def test_numpy(model: Model, tmp_path: Path) -> None:
    """Oracles: training is FedAvg's, bit for bit; each client's mix in NumPy, of clients that never trained, too."""
    settings: dict[str, Any] = {"model": model, "clients": 6, "cohort": 2, "sampler": Uniform(), "rounds": 2}
    partition = Dirichlet(0.3)
    plain = run(tmp_path / "plain.h5", FedAvg(), partition=partition, **settings)
    made = run(tmp_path / "run.h5", KNNPer(neighbours=7, share=0.4, scale=0.5), partition=partition, **settings)
    none = run(tmp_path / "none.h5", KNNPer(share=0.0), partition=partition, **settings)
    assert made.weights_sha256 == plain.weights_sha256
    for found in (none.rounds["test_accuracy"], made.rounds["global_accuracy"]):
        np.testing.assert_allclose(found, plain.rounds["test_accuracy"], atol=1e-9)
    np.testing.assert_allclose(none.rounds["test_loss"], plain.rounds["test_loss"], rtol=1e-5)

    arrays, shape = read(Digits()), (1, 8, 8)
    split = make_split(partition, arrays.train_y, arrays.test_y, 10, 6, SEED)
    parts = before_last_layer(network(model, shape, 10).eval())
    assert parts
    trained = tensors(made)
    for name, tensor in state(parts).items():
        tensor.copy_(trained[name])
    x, test = (normalised(part, Digits()) for part in (arrays.train_x, arrays.test_x))
    correct, loss = 0, 0.0
    with torch.no_grad():
        for shard, own in zip(split.train, split.test, strict=True):
            known = parts.extractor(x[shard]).double().numpy()
            features = parts.extractor(test[own])
            model_says = parts.classifier(features).double().softmax(1).numpy()
            for row, says, label in zip(features.double().numpy(), model_says, arrays.test_y[own], strict=True):
                squared = ((known - row) ** 2).sum(1)
                nearest = np.argsort(squared, kind="stable")[:7]
                weights = np.exp(-(squared[nearest] - squared[nearest].min()) / (known.shape[1] * 0.5))
                shares = np.bincount(arrays.train_y[shard][nearest], weights, 10) / weights.sum()
                mix = 0.4 * shares + 0.6 * says
                correct += mix.argmax() == label
                loss -= np.log(mix[label])
    assert made.rounds["test_accuracy"][-1] == pytest.approx(correct / len(test), abs=1.5 / len(test))
    assert made.rounds["test_loss"][-1] == pytest.approx(loss / len(test), rel=1e-4)
    assert made.rounds["test_accuracy"][-1] > plain.rounds["test_accuracy"][-1]


def test_the_same_network(tmp_path: Path) -> None:
    """Oracle: the network itself, whose tensors keep their order."""
    layers = nn.Linear(5, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    for whole in (nn.Sequential(*layers), Backbone(layers[0], nn.Sequential(*layers[1:]))):
        parts = before_last_layer(whole)
        assert parts is not None
        x = torch.randn(7, 5)
        assert torch.equal(parts(x), whole(x))
        assert parts.extractor(x).shape == (7, 3)
        assert all(a is b for a, b in zip(parts.parameters(), whole.parameters(), strict=True))
    assert before_last_layer(nn.Sequential(nn.Linear(5, 4), nn.ReLU())) is None

    class Rectified(Model):
        def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs), nn.ReLU())

    with pytest.raises(
        BadInput, match=r"--model: KNNPer needs a Backbone or nn\.Sequential that ends in a fully connected"
    ):
        run(tmp_path / "run.h5", KNNPer(), model=Rectified())
