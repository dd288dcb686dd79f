"""What a client does in a round: batches, learning rates, and training that equals a plain PyTorch loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.data import Digits
from fedmpi.errors import BadInput
from fedmpi.models import MLP, CifarCNN, ExquisiteNetV1, LeNet, McMahanCNN, Model
from fedmpi.training.block import Block
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.samples import Batch
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import Client, network, normalised, plain_batches, plain_training, read, state
from tests.training.test_sidebyside import double

__all__ = ["double"]  # a fixture

SHAPE = (1, 8, 8)
DIGITS = read(Digits())


def digits(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return DIGITS.train_x[:count], DIGITS.train_y[:count]


def client(model: Model, count: int, **settings: Any) -> Client:
    """A client that holds the first digits."""
    return Client(network(model, SHAPE, 10), *digits(count), LocalTraining(**settings), Digits())


# How passes are cut


@pytest.mark.parametrize("merge_single", [False, True])
def test_batches(merge_single: bool) -> None:
    """Oracle: a list cut piece by piece, for up to 40 samples and batches of up to 12."""
    for samples in range(41):
        for size in range(2 if merge_single else 1, 13):
            cuts = LocalTraining(batch_size=size).batches(samples, merge_single)
            parts = [np.arange(samples)[cut].tolist() for cut in cuts]
            assert parts == [part.tolist() for part in plain_batches(np.arange(samples), size, merge_single)]
            if merge_single and samples > 1:
                assert all(len(part) > 1 for part in parts)


@pytest.mark.parametrize(
    ("samples", "merge_single", "expected"),
    [(10, True, [3, 3, 4]), (10, False, [3, 3, 3, 1]), (1, True, [1]), (0, True, [])],
)
def test_a_last_batch_of_one(samples: int, merge_single: bool, expected: list[int]) -> None:
    """Oracle: by hand, for batches of three."""
    cuts = LocalTraining(batch_size=3).batches(samples, merge_single)
    assert [cut.stop - cut.start for cut in cuts] == expected


def test_steps() -> None:
    """Oracle: epochs times the batches of a pass; `steps` overrides epochs; nobody trains on nothing."""
    assert LocalTraining(epochs=4, batch_size=3).count_steps(10, False) == 16
    assert LocalTraining(epochs=4, batch_size=3).count_steps(10, True) == 12
    assert LocalTraining(epochs=4, batch_size=3, steps=7).count_steps(10, False) == 7
    assert LocalTraining(epochs=4, batch_size=3, steps=7).count_steps(1, False) == 7
    assert LocalTraining(batch_size=3, steps=7).count_steps(0, False) == 0
    assert LocalTraining(batch_size=3).count_steps(0, True) == 0


# Learning rates


def test_schedules() -> None:
    """Oracle: PyTorch's schedulers, a round as their epoch."""
    rounds = 12
    for schedule, make in (
        ("constant", lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        ("exponential", lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)),
        ("linear", lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, rounds)),
        ("cosine", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)),
    ):
        settings = LocalTraining(lr=0.3, schedule=schedule, decay=0.9)  # type: ignore[arg-type]  # one of four
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = make(optimizer)
        for round in range(1, rounds + 1):
            assert settings.rate(round, rounds) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
            optimizer.step()
            scheduler.step()
    assert settings.rate(1, rounds) == 0.3
    assert 0 < settings.rate(rounds, rounds) < 0.01


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 5])
def test_warm_up(schedule: Any, steps: int) -> None:
    """Oracle: PyTorch's schedulers one after the other, a step (or a round) as their epoch."""
    rounds, warmup = 12, 3
    by: Any = "round" if steps == 1 else "step"
    settings = LocalTraining(lr=0.3, schedule=schedule, warmup=warmup, schedule_by=by)
    rising, rest = warmup * steps, (rounds - warmup) * steps
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    kinds = torch.optim.lr_scheduler
    after = {
        "constant": lambda: kinds.ConstantLR(optimizer, 1.0),
        "linear": lambda: kinds.LinearLR(optimizer, 1.0, 0.0, rest),
        "cosine": lambda: kinds.CosineAnnealingLR(optimizer, rest),
    }[schedule]()
    first = kinds.LinearLR(optimizer, 1 / rising, 1.0, rising - 1)
    scheduler = kinds.SequentialLR(optimizer, [first, after], [rising])
    found = np.concatenate([settings.rates(round, rounds, steps) for round in range(1, rounds + 1)])
    expected = []
    for _ in range(rounds * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.min() > 0
    assert (np.diff(found[:rising]) > 0).all()


def test_rates_within_a_round() -> None:
    """Oracle: by hand: they change by step if that is wanted, and a part of a round may be the warm-up."""
    assert LocalTraining(lr=0.8, schedule="linear").rates(1, 2, 4).tolist() == [0.8] * 4
    by_step = LocalTraining(lr=0.8, schedule="linear", schedule_by="step")
    assert by_step.rates(1, 2, 4) == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert by_step.rates(2, 2, 2) == pytest.approx([0.4, 0.2])
    rising = LocalTraining(lr=0.8, warmup=0.5, schedule_by="step")
    assert rising.rates(1, 2, 4) == pytest.approx([0.4, 0.8, 0.8, 0.8])
    assert rising.rates(2, 2, 2).tolist() == [0.8, 0.8]
    assert LocalTraining(lr=0.8, warmup=9).rates(2, 3, 2) == pytest.approx([0.8 * 2 / 9] * 2)
    assert not LocalTraining(schedule_by="step").varies_within_rounds


def test_the_rate_is_that_of_the_round() -> None:
    """Oracle: with one step, the way is in proportion to the learning rate."""
    ways = []
    for round in (1, 3):
        one = client(MLP(hidden=(5,)), 20, epochs=1, batch_size=20, lr=0.1, schedule="exponential", decay=0.5)
        one.train(round=round, rounds=10)
        ways.append(one.moved)
    torch.testing.assert_close(ways[1], ways[0] / 4, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0: must be at least 1"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"lr": 0.0}, "lr = 0.0: must be above 0"),
        ({"lr": -1.0}, "lr = -1.0: must be above 0"),
        ({"lr": math.nan}, "lr = nan: must be above 0"),
        ({"lr": math.inf}, "lr = inf: must be above 0"),
        ({"momentum": 1.0}, "momentum = 1.0: must be at least 0 and below 1"),
        ({"momentum": 0.5, "optimizer": "adam"}, "momentum = 0.5: must be 0 with optimizer adam"),
        ({"momentum": 0.5, "optimizer": "adamw"}, "momentum = 0.5: must be 0 with optimizer adamw"),
        ({"accumulate": 0}, "accumulate = 0: must be at least 1"),
        ({"warmup": -1.0}, "warmup = -1.0: must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1: must be at least 0"),
        ({"decay": 1.1}, "decay = 1.1: must be above 0 and at most 1"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0: must be above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput, match=message):
        LocalTraining(**settings)


# Training


@pytest.mark.parametrize("model", [MLP(hidden=(33, 17)), LeNet(), LeNet(norm="group"), McMahanCNN()])
@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2, "batch_size": 10, "lr": 0.1},
        {"epochs": 2, "batch_size": 10, "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3, "clip_norm": 1.0},
    ],
)
def test_training_is_a_plain_loop(model: Model, settings: dict[str, Any]) -> None:
    """Oracle: torch.optim.SGD on the module, over the same batches; 41 samples leave a last one alone.

    To 1e-5 of the way that training went: inputs and losses are rounded differently, which ten steps enlarge.
    """
    x, y = digits(41)
    one = client(model, 41, **settings)
    work = one.train()
    plain = network(model, SHAPE, 10)
    loss = plain_training(plain, normalised(x, Digits()), torch.from_numpy(y), LocalTraining(**settings))
    expected = FlatModel(plain, one.model.device).weights[0]
    assert one.moved.norm() > 0.1
    for part in one.model.layout.segments.values():
        assert (one.model.weights[0] - expected)[part].norm() <= 1e-5 * one.moved[part].norm()
    assert work.loss[0] == pytest.approx(loss, rel=1e-5)
    assert work.steps.tolist() == [2 * (4 if one.model.normalises_batches else 5)]
    assert work.seconds[0] > 0


def test_a_last_batch_of_one_sample_joins_where_maps_have_one_pixel() -> None:
    """Oracle: torch.optim.SGD on the module, over all 11 samples at once; to 1e-5 of the way.

    Alone, the last sample would have a single value in each channel, which PyTorch refuses to normalise.
    """
    x, y = digits(11)
    model, settings = ExquisiteNetV1(dropout=0.0), LocalTraining(epochs=1, batch_size=10)
    one = client(model, 11, epochs=1, batch_size=10)
    assert one.train().steps.tolist() == [1]
    plain = network(model, SHAPE, 10)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        copy.deepcopy(plain)(normalised(x[:1], Digits()))
    plain_training(plain, normalised(x, Digits()), torch.from_numpy(y), settings)
    apart = one.model.weights - FlatModel(plain, one.model.device).weights
    assert apart.norm() <= 1e-5 * one.moved.norm()


def test_training_again_gives_the_same() -> None:
    """Oracle: its own bits: momentum, statistics, counters and dropout start afresh."""
    for model, settings in ((LeNet(), {"momentum": 0.9}), (CifarCNN(dropout=0.5), {"lr": 0.01})):
        one = client(model, 30, epochs=1, **settings)
        first = one.train()
        weights = one.model.weights.clone()
        torch.rand(7)
        again = one.train()
        assert torch.equal(one.model.weights, weights)
        assert again.loss == first.loss
        one.train(round=2)
        assert not torch.equal(one.model.weights, weights), "another round, another order and other units dropped"


def test_dropout_differs_from_round_to_round() -> None:
    """Oracle: batches of one and the same sample, whose order cannot matter: with dropout the rounds differ."""
    x, y = DIGITS.train_x[:1].repeat(20, 0), DIGITS.train_y[:1].repeat(20)
    for dropout, alike in ((0.0, True), (0.5, False)):
        one = Client(network(CifarCNN(dropout=dropout), SHAPE, 10), x, y, LocalTraining(epochs=1, lr=0.01), Digits())
        one.train(round=1)
        first = one.model.weights.clone()
        one.train(round=2)
        assert torch.equal(one.model.weights, first) == alike


def test_training_does_not_touch_what_it_starts_from() -> None:
    """Oracle: its bits."""
    one = client(LeNet(), 30, epochs=1)
    before = one.start.clone()
    one.train()
    assert torch.equal(one.start, before)
    assert one.moved.abs().max() > 0


def test_adam_is_a_plain_loop() -> None:
    """Oracle: torch.optim.Adam on full batches, whose order does not matter."""
    x, y = digits(40)
    one = client(MLP(hidden=(20,)), 40, epochs=10, batch_size=40, optimizer="adam", lr=0.01, weight_decay=1e-3)
    one.train()
    plain = network(MLP(hidden=(20,)), SHAPE, 10)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        cross_entropy(plain(normalised(x, Digits())), torch.from_numpy(y)).backward()
        optimizer.step()
    difference = one.model.weights[0] - FlatModel(plain, one.model.device).weights[0]
    assert difference.norm() < 1e-3 * one.moved.norm()


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.usefixtures("double")
def test_adamw_by_step_is_a_plain_loop(clip_norm: float | None) -> None:
    """Oracle: torch.optim.AdamW with PyTorch's cosine, full batches, over two rounds; clipping goes the other way."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 64)).astype(np.float32), rng.integers(0, 10, 40)
    settings: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.3, "clip_norm": clip_norm}
    schedule: dict[str, Any] = {"schedule": "cosine", "schedule_by": "step"}
    local = LocalTraining(epochs=5, batch_size=40, **settings, **schedule)
    one = Client(network(MLP(hidden=(20,)), (64,), 10), x, y, local)
    plain = network(MLP(hidden=(20,)), (64,), 10)
    start = one.start
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01), 10)
    for round in (1, 2):
        optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.3)
        for _ in range(5):
            optimizer.zero_grad()
            cross_entropy(plain(torch.from_numpy(x).double()), torch.from_numpy(y)).backward()
            if clip_norm:
                nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
            optimizer.param_groups[0]["lr"] = rates.get_last_lr()[0]
            optimizer.step()
            rates.optimizer.step()
            rates.step()
        start = one.train(round=round, rounds=2, start=start).weights.clone()
        expected = FlatModel(copy.deepcopy(plain), one.model.device).weights
        tolerance = 1e-4 if clip_norm else 1e-9  # PyTorch adds 1e-6 to the norm that it divides by
        assert (start - expected).norm() < tolerance * (expected - one.start).norm()


def test_one_sample_and_batch_normalisation() -> None:
    """Oracle: the plain loop in evaluation mode: statistics stay as received, parameters are trained."""
    x, y = digits(1)
    settings = LocalTraining(epochs=3)
    one = client(LeNet(), 1, epochs=3)
    work = one.train()
    statistics = one.model.layout.segments["statistics"]
    assert torch.equal(one.model.weights[:, statistics], one.start[:, statistics])
    assert work.steps.tolist() == [3]
    plain = network(LeNet(), SHAPE, 10)
    plain_training(plain, normalised(x, Digits()), torch.from_numpy(y), settings)
    for name, view in one.model.layout.views(one.model.weights[0]).items():
        torch.testing.assert_close(view, state(plain)[name], rtol=1e-4, atol=1e-6)
    assert one.moved.norm() > 1e-3


def test_nothing_to_train_on() -> None:
    """Oracle: the weights received, no steps, no loss."""
    one = client(LeNet(), 0)
    work = one.train()
    assert torch.equal(one.model.weights, one.start)
    assert work.steps.tolist() == [0]
    assert math.isnan(work.loss[0])


def test_clipping() -> None:
    """Oracle: one step of rate 1 goes as far as the gradient is long, at most `clip_norm`, in the same direction."""
    ways = []
    for clip_norm in (None, 1e3, 0.25):
        one = client(MLP(hidden=(20,)), 40, epochs=1, batch_size=40, lr=1.0, clip_norm=clip_norm)
        one.train()
        ways.append(one.moved)
    free, loose, tight = ways
    assert free.norm() > 0.3
    torch.testing.assert_close(loose, free, rtol=1e-6, atol=1e-9)
    assert tight.norm().item() == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(tight, free * 0.25 / free.norm(), rtol=1e-3, atol=1e-7)


def test_clipping_a_gradient_of_zero() -> None:
    """Oracle: nothing moves; no 0/0."""

    class Indifferent(FedAvg):
        def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
            return 0 * net(batch.x).sum(1)

    one = client(MLP(hidden=(20,)), 40, epochs=1, clip_norm=1.0)
    one.train(Indifferent())
    assert not one.moved.any()


def test_augmented_training() -> None:
    """Oracle: its own bits, and others without augmentation or in another round."""
    weights = []
    for augmentation, round in (("crop_flip", 1), ("crop_flip", 1), ("flip", 1), ("none", 1), ("crop_flip", 2)):
        one = client(MLP(hidden=(20,)), 40, epochs=1, augmentation=augmentation)
        one.train(round=round)
        weights.append(one.model.weights[0].clone())
    assert torch.equal(weights[0], weights[1])
    assert len({tuple(row[:50].tolist()) for row in weights}) == 4


def test_a_client_sees_its_pixels_in_its_order() -> None:
    """Oracle: the same images permuted beforehand, bit for bit."""
    x, y = digits(40)
    order = np.random.default_rng(0).permutation(64)
    settings = LocalTraining(epochs=2)
    permuted = x.reshape(40, 1, 64)[:, :, order].reshape(x.shape)
    one = Client(network(LeNet(), SHAPE, 10), x, y, settings, Digits(), torch.from_numpy(order))
    other = Client(network(LeNet(), SHAPE, 10), permuted, y, settings, Digits())
    one.train()
    other.train()
    assert torch.equal(one.model.weights, other.model.weights)


# Hooks


def test_direction_is_called_with_the_trained_parameters() -> None:
    """Oracle: shapes, and the first step's weights, which are those received; clipping comes after the correction."""
    seen: list[tuple[Tensor, ...]] = []

    class Corrected(FedAvg):
        def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
            seen.append((gradient.clone(), weights.clone(), start.clone(), block["correction"]))
            return gradient + block["correction"]

    one = client(LeNet(), 20, epochs=2, batch_size=20, lr=1.0, clip_norm=0.5)
    trained = one.model.layout.parameters
    correction = torch.randn(1, trained, generator=torch.Generator().manual_seed(0))
    one.train(Corrected(), correction=correction)
    assert len(seen) == 2
    for gradient, weights, start, given in seen:
        assert gradient.shape == weights.shape == start.shape == (1, trained)
        assert torch.equal(start, one.start[:, :trained])
        assert torch.equal(given, correction)
    gradient, weights, _, _ = seen[0]
    assert torch.equal(weights, one.start[:, :trained])
    step = seen[1][1] - weights
    assert step.norm().item() == pytest.approx(0.5, rel=1e-5)
    expected = gradient + correction
    torch.testing.assert_close(step, -expected * 0.5 / expected.norm(), rtol=1e-3, atol=1e-7)


def test_loss_sees_start_rows_and_sample_numbers() -> None:
    """Oracle: what was given: the weights received, the client's row, each sample once a pass."""
    numbers: list[int] = []

    class Watching(FedAvg):
        def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
            numbers.extend(batch.index.tolist())
            assert torch.equal(start, one.start[0])
            assert client["row"].tolist() == [1.0, 2.0]
            assert batch.y.tolist() == DIGITS.train_y[batch.index].tolist()
            return super().loss(net, batch, start, client)

    one = client(LeNet(), 25, epochs=2, batch_size=10)
    one.train(Watching(), row=torch.tensor([[1.0, 2.0]]))
    passes = numbers[:25], numbers[25:]
    assert [sorted(one_pass) for one_pass in passes] == [list(range(25))] * 2
    assert passes[0] != passes[1]


def test_net_at_the_weights_received() -> None:
    """Oracle: a plain loop with a copy of the network in evaluation mode beside the one that is trained."""
    x, y = digits(40)
    inputs, labels = normalised(x, Digits()), torch.from_numpy(y)

    class Near(FedAvg):
        """Keeps the logits near those of the received model."""

        def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
            logits = net(batch.x)
            return cross_entropy(logits, batch.y, reduction="none") + (logits - net.at(start)(batch.x)).square().mean(
                1
            )

    one = client(LeNet(), 40, epochs=5, batch_size=40, lr=0.05)
    one.train(Near())
    plain, received = network(LeNet(), SHAPE, 10), network(LeNet(), SHAPE, 10).eval()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        logits = plain(inputs)
        (cross_entropy(logits, labels) + (logits - received(inputs).detach()).square().mean()).backward()
        optimizer.step()
    difference = one.model.weights[0] - FlatModel(plain, one.model.device).weights[0]
    assert difference.norm() < 1e-4 * one.moved.norm()


def test_proximal_pull_is_a_term_of_the_loss() -> None:
    """Oracle: FedProx's correction of the gradient equals mu/2 |w - start|^2 in the loss, by autograd."""
    x, y = digits(40)
    inputs, labels = normalised(x, Digits()), torch.from_numpy(y)
    one = client(MLP(hidden=(20,)), 40, epochs=8, batch_size=40, lr=0.1, momentum=0.5)
    one.train(FedProx(mu=2.0))
    plain = network(MLP(hidden=(20,)), SHAPE, 10)
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.5)
    for _ in range(8):
        optimizer.zero_grad()
        distance = sum((p - s).square().sum() for p, s in zip(plain.parameters(), start, strict=True))
        (cross_entropy(plain(inputs), labels) + distance).backward()
        optimizer.step()
    difference = one.model.weights[0] - FlatModel(plain, one.model.device).weights[0]
    assert difference.norm() < 1e-5 * one.moved.norm()
