"""`Block.gradient`: gradients at other weights and on later batches, within the direction of a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Digits
from fedmpi.models import MLP, LeNet, McMahanCNN, Model
from fedmpi.training.block import WHOLE, Block, Phase
from fedmpi.training.flat import FlatModel
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.jobs.methods import Extragradient
from tests.support.experiments import CPU, Client, network, normalised, order, plain_batches, read
from tests.training.test_sidebyside import MODELS, SETTINGS, SIZES, Both, double

__all__ = ["double"]  # a fixture

SHAPE = (1, 8, 8)
DIGITS = read(Digits())
COUNT = 41


class Sharp(FedAvg):
    """Follows the gradient at weights that are further up the slope, in the client's row; and counts steps there.

    Args:
        ahead: of the batch.
    """

    def __init__(self, ahead: int = 0) -> None:
        self.ahead = ahead

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        up = gradient / gradient.norm(dim=1, keepdim=True)
        return block.gradient(weights + 0.3 * up, self.ahead)


class Twice(FedAvg):
    """Asks for further gradients, and does not use them."""

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        block.gradient(weights + 1, ahead=2)
        block.gradient(weights - 1)
        return gradient


class Elementwise(Twice):
    direction_is_elementwise = True


def client(model: Model, **settings: Any) -> Client:
    x, y = DIGITS.train_x[:COUNT], DIGITS.train_y[:COUNT]
    local = LocalTraining(**{"epochs": 2, "batch_size": 10, "lr": 0.02, **settings})
    return Client(network(model, SHAPE, 10), x, y, local, Digits())


def gradients(module: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    loss = nn.functional.cross_entropy(module(x), y)
    return list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("model", [MLP((33, 17)), LeNet(), McMahanCNN()])
@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.usefixtures("double")
def test_a_plain_loop(model: Model, ahead: int) -> None:
    """Oracle: PyTorch on a copy of the network, to 1e-6 of the way, because pixels are normalised in float32.

    After the last epoch come the batches of another one. Statistics are those of the first pass.
    """
    one = client(model)
    work = one.train(Sharp(ahead))
    module = network(model, SHAPE, 10)
    x, y = normalised(DIGITS.train_x[:COUNT], Digits()).double(), torch.from_numpy(DIGITS.train_y[:COUNT])
    normalises = one.model.normalises_batches
    batches = [b for e in range(4) for b in plain_batches(order(e, 1, 0, COUNT), 10, normalises)]
    for step in range(int(work.steps[0])):
        first = gradients(module, x[batches[step]], y[batches[step]])
        norm = torch.cat([gradient.flatten() for gradient in first]).norm()
        other, chosen = copy.deepcopy(module), batches[step + ahead]
        with torch.no_grad():
            for parameter, gradient in zip(other.parameters(), first, strict=True):
                parameter.add_(gradient, alpha=0.3 / float(norm))
        further = gradients(other, x[chosen], y[chosen])
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), further, strict=True):
                parameter.sub_(gradient, alpha=0.02)
    expected = FlatModel(module, CPU).weights[0]
    assert (one.model.weights[0] - expected).norm() <= 1e-6 * one.moved.norm()
    if ahead:
        assert not torch.equal(client(model).train(Sharp()).weights, one.model.weights)


def compare(
    both: Both, completed: bool = False, phase: Phase = WHOLE, tolerance: float = 1e-12, **vectors: Tensor
) -> None:
    """One by one and side by side, of models, losses and rows."""
    share = np.array([0.2, 1, 0.5, 0.34, 1, 0.01, 0.7, 1]) if completed else None
    trail = torch.randn(len(SIZES), both.plain.model.layout.parameters, generator=torch.Generator().manual_seed(2))
    before = trail.clone()
    expected, works = both.one_by_one(Extragradient(), phase, share, trail=trail)
    work = both.together(Extragradient(), phase=phase, completed=share, trail=trail)
    assert torch.equal(trail, before)
    rows = torch.cat([one.rows["trail"] for one in works])
    for found, wanted, start in ((work.weights, expected, both.start), (work.rows["trail"], rows, before)):
        moved = (wanted - start).norm(dim=1)
        assert (moved > 0).all()
        assert ((found - wanted).norm(dim=1) <= tolerance * moved).all()
    np.testing.assert_allclose(work.loss, [one.loss[0] for one in works], rtol=max(tolerance, 1e-6))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("mlp", "momentum"),
        ("mlp batch", "plain"),
        ("mlp batch", "adam"),
        ("lenet batch", "augmented"),
        ("lenet group", "steps"),
        ("dropout", "momentum"),
        ("bilstm batch", "plain"),
    ],
)
@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.usefixtures("double")
def test_side_by_side_as_one_by_one(model: str, settings: str, completed: bool) -> None:
    """Oracle: training one by one; 1e-12 of the way, also for rows that come back, for clients of all sizes."""
    compare(Both(MODELS[model], **SETTINGS[settings]), completed)


@pytest.mark.usefixtures("double")
def test_samples_of_different_weights() -> None:
    """Oracle: training one by one; 1e-7 of the way, because the weights of samples are float32."""
    compare(Both(MODELS["next token"], momentum=0.5), tolerance=1e-7)


@pytest.mark.parametrize("permuted", [False, True])
def test_in_single_precision(permuted: bool) -> None:
    """Oracle: training one by one; 1e-4 of the way."""
    compare(Both(MODELS["lenet batch"], permuted=permuted, steps=2), tolerance=1e-4)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("mlp", {"clip_norm": 0.5}),
        ("mlp", {"precision": "bf16"}),
        ("lenet batch", {"momentum": 0.5}),
        ("dropout", {"weight_decay": 0.01}),
    ],
)
def test_bits_do_not_depend_on_the_company(model: str, settings: dict[str, Any]) -> None:
    """Oracle: the same client beside all others, in weights and rows; also among fewer, and in another order."""
    both = Both(MODELS[model], **settings)
    trail = torch.zeros(len(SIZES), both.plain.model.layout.parameters)

    def trained(*clients: int) -> tuple[Tensor, Tensor]:
        work = both.together(Extragradient(), clients, trail=trail[list(clients)])
        return work.weights.clone(), work.rows["trail"]

    everybody = trained(*range(len(SIZES)))
    for company in ([0], [0, 7], [0, 1, 2], [1, 2, 3, 4], [7, 0, 3]):
        for found, expected in zip(trained(*company), everybody, strict=True):
            assert torch.equal(found, expected[company]), company


class Frozen(Model):
    """A hidden layer that is not trained."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        hidden = nn.Linear(192, 7).requires_grad_(False)
        return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), nn.Linear(7, classes))


@pytest.mark.usefixtures("double")
def test_frozen_parameters() -> None:
    """Oracle: training one by one; d is the number of the others."""
    both = Both(Frozen())
    assert both.plain.model.layout.parameters == 8 * 10
    compare(both)


def parts(layout: Layout) -> dict[str, tuple[slice, ...]]:
    head, norm = layout.segments["head"], layout.segments["norm"]
    return {
        "head": (head,),
        "body": (slice(head.stop, layout.size),),
        "ends": (head, slice(norm.start, layout.size)),
    }


@pytest.mark.parametrize("part", ["head", "body", "ends"])
@pytest.mark.usefixtures("double")
def test_parts_of_the_model(part: str) -> None:
    """Oracle: training one by one; the rest of the model keeps its bits, and its gradient is zero."""
    both = Both(MODELS["lenet batch"], momentum=0.5, clip_norm=0.5)
    layout = both.plain.model.layout
    columns = parts(layout)[part]
    frozen = torch.ones(layout.size, dtype=torch.bool)
    for run in columns:
        frozen[run] = False

    class Watched(Extragradient):
        def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
            for found in (gradient, block.gradient(weights + 0.1)):
                assert found.shape == weights.shape == start.shape == (len(block), layout.parameters)
                assert not found[:, frozen[: layout.parameters]].any()
                assert found.any()
            return super().direction(gradient, weights, start, block) + 1.0 * frozen[: layout.parameters]

    phase = Phase("part", columns=columns)
    compare(both, phase=phase)
    trail = torch.zeros(len(SIZES), layout.parameters)
    one_by_one, _ = both.one_by_one(Watched(), phase, trail=trail)
    for weights in (one_by_one, both.together(Watched(), phase=phase, trail=trail).weights):
        assert torch.equal(weights[:, frozen], both.start[:, frozen].expand(len(SIZES), -1))


class Counted(Model):
    """Batch normalisation whose running statistics are the means over all batches, which it counts."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        kind = torch.get_default_dtype()
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.BatchNorm1d(7, momentum=None), nn.Dropout(0.3))
        return nn.Sequential(hidden, nn.Linear(7, classes)).to(kind)


class Centring(nn.Module):
    """Subtracts a running mean, which it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(192))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.middle, Tensor)
        centred = x.flatten(1) - self.middle
        if self.training:
            self.middle.mul_(0.9).add_(x.flatten(1).mean(0), alpha=0.1)
        return centred


class Centred(Model):
    """Logistic regression behind such a layer."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(Centring(), nn.Linear(192, classes))


@pytest.mark.parametrize("model", [Counted(), Centred(), LeNet(), MODELS["dropout"], MODELS["unet batch"]])
@pytest.mark.parametrize("settings", ["plain", "momentum"])
def test_they_leave_no_trace(model: Model, settings: str) -> None:
    """Oracle: FedAvg, bit for bit, in weights, statistics, losses, one by one and side by side."""
    both = Both(model, **SETTINGS[settings])
    expected, works = both.one_by_one(FedAvg())
    found, twice = both.one_by_one(Twice())
    assert torch.equal(found, expected)
    assert [one.loss[0] for one in twice] == [one.loss[0] for one in works]
    plain = both.together(FedAvg())
    weights = plain.weights.clone()
    work = both.together(Twice())
    assert torch.equal(work.weights, weights)
    np.testing.assert_array_equal(work.loss, plain.loss)


def test_the_same_batch_has_the_same_random_numbers() -> None:
    """Oracle: the gradient itself, bit for bit, with dropout; and later that of the step that comes to the batch."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Same(FedAvg):
        def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
            assert torch.equal(block.gradient(weights), gradient)
            seen.append((gradient.clone(), block.gradient(weights, ahead=1)))
            return torch.zeros_like(gradient)

    both = Both(MODELS["dropout"], augmentation="crop_flip")
    for train in (both.one_by_one, both.together):
        seen.clear()
        train(Same())
        for (_, ahead), (gradient, _) in pairwise(seen[:4]):
            assert torch.equal(ahead[: len(gradient)], gradient)


def test_rows_that_all_clients_share_are_each_clients_own() -> None:
    """Oracle: by hand: as many steps as the client takes, whoever was trained before it."""

    class Counting(FedAvg):
        def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
            block["steps"].add_(1)
            return gradient

    both = Both(MODELS["mlp"])
    shared = torch.zeros(3).expand(len(SIZES), -1)
    _, works = both.one_by_one(Counting(), steps=shared)
    work = both.together(Counting(), steps=shared)
    assert not shared.any()
    for found in (work.rows["steps"], torch.cat([one.rows["steps"] for one in works])):
        assert torch.equal(found, torch.from_numpy(work.steps)[:, None].expand(-1, 3).float())


def test_padding_is_not_real() -> None:
    """Oracle: by hand: the sizes of the batches; one by one there is no padding."""
    seen: list[Tensor] = []

    class Watched(FedAvg):
        def loss(self, net: Any, batch: Any, start: Tensor, client: Any) -> Tensor:
            seen.append(batch.real)
            return super().loss(net, batch, start, client)

    both = Both(MODELS["mlp"], epochs=1)
    both.one_by_one(Watched())
    assert [len(real) for real in seen] == [size for total in SIZES for size in cut(total)]
    assert all(real.eq(1).all() for real in seen)


def cut(total: int) -> list[int]:
    return [min(4, total - first) for first in range(0, total, 4)]


@pytest.mark.parametrize("train", [Both.one_by_one, Both.together])
def test_where_there_are_none(train: Callable[..., Any]) -> None:
    """Oracle: the messages."""
    both = Both(MODELS["mlp"], steps=1)
    with pytest.raises(RuntimeError, match=r"only in `direction`, with direction_is_elementwise = False"):
        train(both, Elementwise())
    with pytest.raises(ValueError, match="ahead = -1: must be at least 0"):
        train(both, Sharp(-1))
