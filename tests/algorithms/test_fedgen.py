"""FedGen: FedAvg without its terms, the generator's objective by hand, and the whole method in plain PyTorch."""

from __future__ import annotations

import copy
import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from fedmpi import randomness
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedgen import DRAWS, MADE, FedGen, ensemble_losses
from fedmpi.data import IID, Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, Model
from fedmpi.models.generators.features import FeatureGenerator
from fedmpi.policies.attacks import SignFlip
from fedmpi.policies.compression import Int8
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder, OneVector, Regression
from tests.support.digits import DIGITS, EACH, SHAPE, Few, in_order
from tests.support.experiments import CPU, SEED, network, normalised, order, plain_batches, run, state
from tests.training.test_sidebyside import MODELS, SIZES, Both, compare, double

__all__ = ["double"]  # a fixture


# Without its terms


@pytest.mark.parametrize(
    ("algorithm", "vectorize"),
    [(FedGen(alpha=0, beta=0), "off"), (FedGen(alpha=0, beta=0), 4), (FedGen(lr=1e30), "off")],
    ids=["no weights", "no weights, side by side", "a generator that diverges"],
)
def test_without_its_terms_it_is_fedavg(algorithm: FedGen, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedAvg, bit for bit; also if the generator is lost in every round, which is counted."""
    settings: dict[str, Any] = {
        "model": LeNet(),
        "dataset": Few(150),
        "clients": 5,
        "rounds": 3,
        "local": LocalTraining(epochs=1, vectorize=vectorize),
    }
    made, plain = run(tmp_path / "gen.h5", algorithm, **settings), run(tmp_path / "plain.h5", **settings)
    assert made.weights_sha256 == plain.weights_sha256
    for column in ("train_loss", "test_accuracy", "bytes_up"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    more = 4 * 5 * (len(algorithm.generator_weights) + 10)
    assert (made.rounds["bytes_down"] - plain.rounds["bytes_down"]).tolist() == [more] * 3
    lost = algorithm.lr > 1
    assert made.rounds["generator_resets"].tolist() == [int(lost)] * 3
    assert algorithm.generator_weights.isfinite().all()
    assert algorithm.known.tolist() == [0 if lost else 1] * 10


# The generator's objective


def heads(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights [m, 3, 5] and biases [m, 3] of so many heads."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 5, generator=rng), torch.randn(count, 3, generator=rng)


def asked(size: int = 8) -> tuple[Tensor, Tensor]:
    """Features [B, 5] and labels [B] of three classes."""
    return torch.randn(size, 5, generator=torch.Generator().manual_seed(1)), torch.arange(size) % 3


def test_the_ensemble_by_hand() -> None:
    """Oracle: a loop over clients and samples, with shares that differ by class."""
    (weight, bias), (features, labels) = heads(2), asked()
    shares = torch.tensor([[0.75, 0.0, 0.5], [0.25, 1.0, 0.5]])
    expected = torch.zeros(len(labels))
    for (b, (z, y)), k in product(enumerate(zip(features, labels, strict=True)), range(2)):
        expected[b] += shares[k, y] * cross_entropy(weight[k] @ z + bias[k], y)
    torch.testing.assert_close(ensemble_losses(features, labels, weight, bias, shares), expected)


def test_one_client_is_its_own_teacher() -> None:
    """Oracle: PyTorch's cross entropy of its head, with and without a bias."""
    (weight, bias), (features, labels) = heads(1), asked()
    for one in (bias, bias[:, :0]):
        logits = features @ weight[0].T + (one[0] if one.numel() else 0)
        found = ensemble_losses(features, labels, weight, one, torch.ones(1, 3))
        torch.testing.assert_close(found.mean(), cross_entropy(logits, labels))


def test_a_client_twice_is_the_client_once() -> None:
    """Oracle: the same objective with each client's share cut in two equal ones."""
    (weight, bias), (features, labels) = heads(3), asked()
    shares = torch.tensor([[0.2, 1.0, 0.0], [0.3, 0.0, 0.5], [0.5, 0.0, 0.5]])
    once = ensemble_losses(features, labels, weight, bias, shares)
    twice = ensemble_losses(features, labels, weight.repeat(2, 1, 1), bias.repeat(2, 1), shares.repeat(2, 1) / 2)
    torch.testing.assert_close(once, twice)


def test_the_generator_learns_what_the_heads_want(tmp_path: Path) -> None:
    """Oracle: the mean cross entropy of a client's head on its features, far below log C, and at first above.

    The clients lack a class: the generator is not asked for it, and nothing is divided by zero.
    """
    algorithm = FedGen(alpha=0, beta=0, steps=200, lr=0.01)
    settings: dict[str, Any] = {"partition": Without(7), "model": MLP((20,)), "clients": 3}
    made = run(tmp_path / "run.h5", algorithm, rounds=1, **settings)
    assert made.rounds["generator_resets"].tolist() == [0]
    assert algorithm.known.tolist() == [1] * 7 + [0] + [1] * 2
    labels = torch.arange(10).repeat_interleave(20)
    labels = labels[labels != 7]
    noise = torch.randn(len(labels), 32, generator=torch.Generator().manual_seed(0))
    trained = {name: torch.from_numpy(tensor) for name, tensor in made.state_dict().items()}

    def loss(generator: Tensor) -> float:
        algorithm.network.load(generator)
        features = algorithm.network.module.eval()(noise, labels).detach()
        return float(cross_entropy(features @ trained["classifier.weight"].T + trained["classifier.bias"], labels))

    assert loss(algorithm.generator_weights) < 0.5 * math.log(10) < loss(first_generator(20).weights[0])


class Without(IID):
    """A random part for each client, of all samples but those of a class."""

    def __init__(self, label: int) -> None:
        self.label = label

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        others = np.flatnonzero(labels != self.label)
        return [others[part] for part in super().split(others, clients, rng)]


# The clients' terms


class Given:
    """In place of a network: inputs are their own logits, and so are features."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def run(self, part: str, features: Tensor) -> Tensor:
        return features


def test_the_loss_by_hand() -> None:
    """Oracle: PyTorch's losses, sample by sample; nothing of the second kind for a class that is not known."""
    rng = torch.Generator().manual_seed(0)
    features, x = torch.randn(3, MADE, 3, generator=rng), torch.randn(9, 3, generator=rng)
    draws = torch.stack([torch.randint(high, (DRAWS,), generator=rng) for high in (2, MADE, MADE)], 1)
    batch: Any = SimpleNamespace(x=x, y=torch.arange(9) % 3, index=torch.arange(9) * 777)
    client = {"features": features, "draws": draws, "known": torch.tensor([1.0, 1.0, 0.0])}
    net: Any = Given()
    algorithm = FedGen()
    algorithm.head = ""
    found = algorithm.loss(net, batch, x[0], {**client, "strength": torch.tensor([0.7, 0.3])})
    for b in range(9):
        (label, first, second), y = draws[777 * b % DRAWS].tolist(), b % 3
        expected = cross_entropy(x[b], batch.y[b]) + 0.7 * cross_entropy(features[label, first], torch.tensor(label))
        if y != 2:
            expected += 0.3 * kl_div(log_softmax(x[b], 0), softmax(features[y, second], 0), reduction="sum")
        torch.testing.assert_close(found[b], expected)


# The whole method


def first_generator(features: int) -> FlatModel:
    """What an experiment starts from."""
    torch.manual_seed(randomness.key(SEED, "generator"))
    return FlatModel(FeatureGenerator().build((features,), 10), CPU)


def last_layer(module: nn.Module) -> nn.Linear:
    last = list(module.modules())[-1]
    assert isinstance(last, nn.Linear)
    return last


class PlainFedGen:
    """The paper's algorithm for a few clients, of whom each has the next thirty digits, in plain PyTorch."""

    def __init__(self, model: Model, clients: int, local: LocalTraining, options: FedGen) -> None:
        self.server = network(model, SHAPE, 10)
        self.clients = clients
        self.local = local
        self.options = options
        self.x = normalised(DIGITS.train_x[: clients * EACH], Digits())
        self.y = torch.from_numpy(DIGITS.train_y[: clients * EACH])
        self.generator = first_generator(last_layer(self.server).in_features).module
        self.optimizer = torch.optim.Adam(self.generator.parameters(), weight_decay=options.weight_decay)

    def round(self, round: int) -> None:
        trained = [self.train(copy.deepcopy(self.server), client, round) for client in range(self.clients)]
        means = {name: torch.stack([state(one)[name] for one in trained]).mean(0) for name in state(self.server)}
        self.server.load_state_dict(means, strict=False)
        self.train_generator([last_layer(one) for one in trained], round)

    def train(self, module: nn.Module, client: int, round: int) -> nn.Module:
        options, head = self.options, last_layer(module)
        alpha, beta = (w * options.decay ** (round - 1) for w in (options.alpha, options.beta))
        stream = randomness.stream(SEED, "generated features", round, client)
        noise = torch.from_numpy(stream.standard_normal((10 * MADE, 32), dtype=np.float32))
        with torch.no_grad():
            made = self.generator.eval()(noise, torch.arange(10).repeat_interleave(MADE)).view(10, MADE, -1)
        classes = torch.from_numpy(stream.choice(self.y.unique().numpy(), DRAWS))
        numbers = torch.from_numpy(stream.integers(MADE, size=(2, DRAWS)))
        mine = torch.arange(client * EACH, (client + 1) * EACH)
        optimizer = torch.optim.SGD(module.train().parameters(), lr=self.local.lr, momentum=self.local.momentum)
        for epoch in range(self.local.epochs):
            for chosen in plain_batches(order(epoch, round, client, EACH), self.local.batch_size, True):
                which = mine[chosen]
                y, logits = self.y[which], module(self.x[which])
                loss = cross_entropy(logits, y)
                if round > 1:
                    drawn = classes[which]
                    loss = loss + alpha * cross_entropy(head(made[drawn, numbers[0, which]]), drawn)
                    target = softmax(head(made[y, numbers[1, which]]), 1).detach()
                    loss = loss + beta * kl_div(log_softmax(logits, 1), target, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return module

    def train_generator(self, heads: list[nn.Linear], round: int) -> None:
        options, stream = self.options, randomness.stream(SEED, "generator's training", round)
        counts = torch.stack([part.bincount(minlength=10) for part in self.y.split(EACH)])
        self.generator.train()
        self.optimizer.param_groups[0]["lr"] = options.lr * options.lr_decay ** (round - 1)
        for _ in range(options.steps):
            labels = torch.from_numpy(stream.choice(self.y.unique().numpy(), options.batch_size))
            noise = torch.from_numpy(stream.standard_normal((options.batch_size, 32), dtype=np.float32))
            made = self.generator(noise, labels)
            shares = counts / counts.sum(0)
            losses = [cross_entropy(head(made), labels, reduction="none") for head in heads]
            loss = sum((share[labels] * each).mean() for share, each in zip(shares, losses, strict=True))
            apart = torch.cdist(made, made, p=1) / made.shape[1] * torch.cdist(noise, noise) ** 2 / 32
            self.optimizer.zero_grad()
            (loss + torch.exp(-apart.mean())).backward()
            self.optimizer.step()


@pytest.mark.parametrize("vectorize", ["off", 2])
@pytest.mark.parametrize("model", [LeNet(), MLP((20,))])
def test_it_is_the_papers_algorithm(model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: plain PyTorch over three rounds of two clients; to 1e-3 of what the terms change.

    It tells heads from averaged ones, a generator and an Adam that go on from those that start anew, a generator in
    evaluation mode from one in training mode, and shares of samples from equal ones.
    """
    local = LocalTraining(epochs=2, batch_size=10, lr=0.05, momentum=0.5, vectorize=vectorize)
    algorithm = FedGen(alpha=2.0, beta=0.5, decay=0.5, steps=20, batch_size=16, lr=0.01, lr_decay=0.5)
    made = in_order(tmp_path / "gen.h5", algorithm, model, 2, local)
    plain = in_order(tmp_path / "plain.h5", FedAvg(), model, 2, local)
    oracle = PlainFedGen(model, 2, local, algorithm)
    for round in (1, 2, 3):
        oracle.round(round)
    flat = FlatModel(oracle.server, CPU)
    expected = flat.layout.canonical(flat.weights[0]).detach().numpy()
    changed = np.linalg.norm(plain.weights - expected)
    assert changed > 0.01
    assert np.linalg.norm(made.weights - expected) < 1e-3 * changed
    generator = FlatModel(oracle.generator, CPU).weights[0].detach()
    went = (generator - first_generator(last_layer(oracle.server).in_features).weights[0]).norm()
    assert (algorithm.generator_weights - generator).norm() < 1e-3 * went
    assert algorithm.moves == 60


def taught(both: Both) -> dict[str, Tensor]:
    """What the loss reads, of features that are each client's own; two classes are unknown."""
    rng, shape = torch.Generator().manual_seed(1), (len(SIZES), 10, MADE, both.plain.model.layout.entries[0].shape[1])
    draws = [torch.randint(high, (len(SIZES), DRAWS), generator=rng) for high in (8, MADE, MADE)]
    known = torch.tensor([1.0] * 8 + [0.0] * 2)
    features, strength = torch.randn(shape, generator=rng), torch.tensor([2.0, 0.5])
    return {"features": features, "draws": torch.stack(draws, -1), "known": known, "strength": strength}


def learner(both: Both) -> FedGen:
    algorithm = FedGen()
    algorithm.head = both.plain.model.layout.entries[0].name.rpartition(".")[0]
    return algorithm


@pytest.mark.parametrize("model", ["mlp", "lenet batch"])
@pytest.mark.usefixtures("double")
def test_side_by_side(model: str) -> None:
    """Oracle: clients one by one, each with features of its own; 1e-12 of the way."""
    both = Both(MODELS[model])
    compare(both, learner(both), 1e-12, **spread(taught(both)))


@pytest.mark.parametrize("company", [(0,), (0, 7), (0, 1, 2), (1, 2, 3, 4)])
def test_bits_do_not_depend_on_the_company(company: tuple[int, ...]) -> None:
    """Oracle: the same client beside all others, in another row, with odd widths."""
    both = Both(MLP((17, 5)))
    vectors = spread(taught(both))
    everybody = both.together(learner(both), **vectors).weights.clone()
    some = {name: rows[list(company)] for name, rows in vectors.items()}
    assert torch.equal(both.together(learner(both), company, **some).weights, everybody[list(company)])


def spread(vectors: dict[str, Tensor]) -> dict[str, Any]:
    """A row of each for every client, as a block has them."""
    return {name: v.expand(len(SIZES), -1) if v.dim() == 1 else v for name, v in vectors.items()}


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha = -1.0: must be at least 0"),
        ({"beta": math.nan}, "beta = nan: must be at least 0"),
        ({"decay": 0.0}, "decay = 0.0: must be above 0 and at most 1"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"batch_size": 1}, "batch_size = 1: must be at least 2"),
        ({"lr": 0.0}, "lr = 0.0: must be above 0"),
        ({"lr_decay": 1.1}, "lr_decay = 1.1: must be above 0 and at most 1"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        FedGen(**options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": Regression(), "partition": InOrder(), "model": OneVector(), "clients": 5},
            "--model: FedGen needs one that ends in a fully connected layer",
        ),
        ({"attack": SignFlip()}, "attack = SignFlip: FedGen's server uses the models of single clients"),
        ({"compression": Int8()}, "compression = Int8: FedGen's server uses the models of single clients"),
    ],
)
def test_what_it_does_not_go_with(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: one line, before anything is written."""
    with pytest.raises(BadInput, match=message):
        run(tmp_path / "run.h5", FedGen(), **settings)
    assert not (tmp_path / "run.h5").exists()
