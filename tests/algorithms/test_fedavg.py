"""FedAvg against plain training: one client, all samples at once, equal clients, nobody; bytes and accuracies."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.data import Digits, Dirichlet, make_split
from fedmpi.models import MLP, LeNet, Model
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Pool, Sampler, Uniform
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder
from tests.support.digits import DIGITS, SHAPE, Few
from tests.support.experiments import SEED, Client, network, normalised, plain_training, run, state, tensors


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in one) ** 0.5)


class Nobody(Sampler):
    """Nobody ever comes."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.empty(0, dtype=np.int64)


@pytest.mark.parametrize("model", [MLP(hidden=(33,)), LeNet()])
def test_one_client_is_plain_training(model: Model, tmp_path: Path) -> None:
    """Oracle: torch.optim.SGD over the same batches, a new optimizer each round; to 1e-5 of the way."""
    settings = LocalTraining(epochs=2, batch_size=16, lr=0.05, momentum=0.9, weight_decay=1e-3)
    made = run(tmp_path / "run.h5", dataset=Few(60), model=model, clients=1, rounds=3, local=settings)
    plain = network(model, SHAPE, 10)
    start = copy.deepcopy(state(plain))
    x, y = normalised(DIGITS.train_x[:60], Digits()), torch.from_numpy(DIGITS.train_y[:60])
    losses = [plain_training(plain, x, y, settings, round=round) for round in (1, 2, 3)]
    way = distance(state(plain), start)
    assert way > 0.3
    assert distance(tensors(made), state(plain)) < 1e-5 * way
    np.testing.assert_allclose(made.rounds["train_loss"], losses, rtol=1e-4)


def test_one_client_is_passed_through(tmp_path: Path) -> None:
    """Oracle: local training without any federation, bit for bit, round after round."""
    local = LocalTraining(epochs=2, batch_size=16, momentum=0.9)
    made = run(tmp_path / "run.h5", dataset=Few(60), model=LeNet(), clients=1, rounds=3, local=local)
    client = Client(network(LeNet(), SHAPE, 10), DIGITS.train_x[:60], DIGITS.train_y[:60], local, Digits())
    for round in (1, 2, 3):
        client.train(round=round, rounds=3)
        client.start = client.model.weights.clone()
    np.testing.assert_array_equal(client.model.layout.canonical(client.start[0]).numpy(), made.weights)


@pytest.mark.parametrize("model", [LogisticRegression(), MLP(hidden=(33,))])
def test_full_batches_are_a_step_of_gradient_descent(model: Model, tmp_path: Path) -> None:
    """Oracle: the gradient over all samples of all clients, in float64; the step agrees to 1e-6."""
    settings = LocalTraining(epochs=1, batch_size=10_000, lr=0.5)
    made = run(tmp_path / "run.h5", model=model, partition=Dirichlet(0.3), clients=7, local=settings)
    assert len(set(made.partition["samples"])) == 7
    assert made.partition["samples"].sum() == len(DIGITS.train_y)
    plain = network(model, SHAPE, 10).double()
    start = copy.deepcopy(state(plain))
    x, y = normalised(DIGITS.train_x, Digits()).double(), torch.from_numpy(DIGITS.train_y)
    cross_entropy(plain(x), y).backward()
    torch.optim.SGD(plain.parameters(), 0.5).step()
    assert distance(tensors(made), state(plain)) < 1e-6 * distance(state(plain), start)


def test_uniform_weighting_is_another_step(tmp_path: Path) -> None:
    """Oracle: the plain mean of the clients' gradients, in float64; far from that weighted by samples."""
    settings = LocalTraining(epochs=1, batch_size=10_000, lr=0.5)
    made = run(tmp_path / "run.h5", partition=Dirichlet(0.3), clients=7, local=settings, weighting="uniform")
    split = make_split(Dirichlet(0.3), DIGITS.train_y, DIGITS.test_y, 10, 7, SEED)
    x, y = normalised(DIGITS.train_x, Digits()).double(), torch.from_numpy(DIGITS.train_y)
    plain, pooled = (network(LogisticRegression(), SHAPE, 10).double() for _ in range(2))
    start = copy.deepcopy(state(plain))
    (sum(cross_entropy(plain(x[shard]), y[shard]) for shard in split.train) / 7).backward()  # type: ignore[union-attr]
    torch.optim.SGD(plain.parameters(), 0.5).step()
    assert distance(tensors(made), state(plain)) < 1e-6 * distance(state(plain), start)
    cross_entropy(pooled(x), y).backward()
    torch.optim.SGD(pooled.parameters(), 0.5).step()
    assert distance(tensors(made), state(pooled)) > 0.05 * distance(state(plain), start)


@pytest.mark.parametrize("model", [MLP(hidden=(33,)), LeNet()])
def test_equal_clients_are_any_one_of_them(model: Model, tmp_path: Path) -> None:
    """Oracle: one client with the same 30 samples, in full batches, whose order does not matter; to 1e-5."""
    settings: dict[str, Any] = {
        "model": model,
        "partition": InOrder(),
        "rounds": 3,
        "local": LocalTraining(epochs=3, batch_size=30, lr=0.2),
    }
    four = run(tmp_path / "four.h5", dataset=Few(30, copies=4), clients=4, **settings)
    one = run(tmp_path / "one.h5", dataset=Few(30), clients=1, **settings)
    way = distance(tensors(one), state(network(model, SHAPE, 10)))
    assert way > 0.3
    assert distance(tensors(four), tensors(one)) < 1e-5 * way
    assert four.rounds["train_loss"] == pytest.approx(one.rounds["train_loss"], rel=1e-4)


def test_equal_samples_give_equal_clients(tmp_path: Path) -> None:
    """Oracle: one client, to the unit of the sum, 2^-43: three clients hold one sample eight times each."""
    settings: dict[str, Any] = {
        "model": MLP(hidden=(33,)),
        "partition": InOrder(),
        "local": LocalTraining(epochs=2, batch_size=4),
    }
    three = run(tmp_path / "three.h5", dataset=Few(1, copies=24), clients=3, **settings).weights
    one = run(tmp_path / "one.h5", dataset=Few(1, copies=8), clients=1, **settings).weights
    assert (np.abs(three.astype(np.float64) - one) <= np.spacing(np.abs(one)) / 2 + 2.0**-43).all()


def test_nobody_changes_nothing(tmp_path: Path) -> None:
    """Oracle: the first weights, bit for bit, after three rounds."""
    made = run(tmp_path / "run.h5", model=LeNet(), sampler=Nobody(), rounds=3)
    for name, tensor in state(network(LeNet(), SHAPE, 10)).items():
        assert torch.equal(tensors(made)[name], tensor), name
    assert set(made.rounds["test_loss"]) == {made.initial["test_loss"]}
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [0, 0, 0]
    assert len(made.clients["client"]) == 0


def test_bytes(tmp_path: Path) -> None:
    """Oracle: 4 bytes for each of 650 parameters, down to and up from each of 3 clients."""
    made = run(tmp_path / "run.h5", sampler=Uniform(), clients=8, cohort=3, rounds=4)
    assert made.rounds["bytes_down"].tolist() == [3 * 650 * 4] * 4
    assert made.rounds["bytes_up"].tolist() == [3 * 650 * 4] * 4


def test_client_accuracies_make_the_accuracy(tmp_path: Path) -> None:
    """Oracle: whole numbers of correct samples: the clients' add up to the model's, exactly."""
    made = run(tmp_path / "run.h5", partition=Dirichlet(0.3), clients=7, rounds=4, model=LeNet())
    shards = [len(shard) for shard in make_split(Dirichlet(0.3), DIGITS.train_y, DIGITS.test_y, 10, 7, SEED).test]
    assert sum(shards) == len(DIGITS.test_y) == 355
    assert min(shards) > 0
    correct = made.evaluation["client_accuracy"] * shards
    np.testing.assert_allclose(correct, correct.round(), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(correct.round().sum(1) / 355, made.rounds["test_accuracy"])
    assert len(set(made.rounds["test_accuracy"])) > 1
    by_class = made.evaluation["per_class_accuracy"] * np.bincount(DIGITS.test_y)
    np.testing.assert_array_equal(by_class.round().sum(1) / 355, made.rounds["test_accuracy"])


def test_accuracy_and_loss_are_the_networks(tmp_path: Path) -> None:
    """Oracle: the written weights in a network of PyTorch's own, on the whole test set."""
    made = run(tmp_path / "run.h5", model=LeNet(), rounds=2, local=LocalTraining(epochs=3))
    plain = network(LeNet(), SHAPE, 10)
    plain.load_state_dict(tensors(made), strict=False)
    plain.eval()
    with torch.inference_mode():
        logits, y = plain(normalised(DIGITS.test_x, Digits())), torch.from_numpy(DIGITS.test_y)
    assert made.rounds["test_loss"][-1] == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)
    assert made.rounds["test_accuracy"][-1] == pytest.approx(
        (logits.argmax(1) == y).double().mean().item(), abs=0.003
    )
    assert made.rounds["test_accuracy"][-1] > 0.9
    apart = np.abs(made.confusion["counts"] - confusion_matrix(DIGITS.test_y, logits.argmax(1).numpy()))
    assert apart.sum() <= 2, "more than a sample on the border"
    assert made.confusion["round"].tolist() == [2]
