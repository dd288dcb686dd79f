"""Two clients are trained both ways before a run: what side by side would train wrongly is found."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.training.block import Block
from fedmpi.training.flat import FlatModel
from fedmpi.training.losses import cross_entropy
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import Task
from fedmpi.training.trial import obstacle
from tests.small import CPU, SEED
from tests.training.test_draws import RANDOM, Attending, Function


def task(network: nn.Module) -> Task:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), rng.integers(0, 10, 40)
    samples = Samples(x, y, (0.5,) * 3, (0.25,) * 3, CPU)
    shards = [np.arange(10), np.arange(10, 40)]
    return Task(FlatModel(network, CPU), samples, shards, lambda client: None, LocalTraining(), SEED)


def around(layer: nn.Module | Callable[[Tensor], Tensor]) -> nn.Module:
    layer = layer if isinstance(layer, nn.Module) else Function(layer)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), layer, nn.Linear(16, 10))


class Unused(nn.Module):
    """A layer that the forward pass never calls, and one that is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.scale = nn.Linear(192, 10), nn.Linear(3, 3), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.used(x.flatten(1)) * self.scale
        return logits


class Words(nn.Module):
    """An embedding with a padding row, of pixels taken for words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 6, padding_idx=-2), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        words = (x.flatten(1) > 0).long() + 2 * (x.flatten(1) > 1).long()
        logits: Tensor = self.head(self.embedding(words).mean(1))
        return logits


class Remembers(nn.Module):
    """Moves a buffer towards the mean over the batch, whichever rows it has."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


def by_value(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def tracked(momentum: float | None) -> nn.Module:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True, momentum=momentum)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(144, 10))


FINE: dict[str, nn.Module] = {
    **{f"random {name}": model.build((3, 8, 8), 10) for name, model in RANDOM.items()},
    "unused": Unused(),
    "padding row": Words(),
    "batch norm": around(nn.BatchNorm1d(16)),
    "cumulative": around(nn.BatchNorm1d(16, momentum=None)),
    "no statistics": around(nn.BatchNorm1d(16, track_running_stats=False)),
    "instance norm": tracked(0.1),
    "instance norm without momentum": tracked(None),
    "weight norm": around(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))),
    "attention": Attending(),
}


@pytest.mark.parametrize("name", FINE)
def test_nothing_against_layers_that_are_made_right(name: str) -> None:
    """Oracle: that they are right (test_sidebyside, test_draws); and the model is left as it was."""
    tried = task(FINE[name])
    before = tried.model.weights.clone()
    assert obstacle(tried, FedAvg()) is None
    assert torch.equal(tried.model.weights, before)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (around(by_value), "cannot be run for several clients at once: its forward pass depends on the values"),
        (around(lambda x: x * x.mean().item()), "its forward pass depends on the values of tensors"),
        (around(lambda x: x + torch.poisson(torch.ones_like(x))), "it draws random numbers in a way that cannot be"),
        (around(lambda x: x - x.mean(0)), "gives other results side by side than one by one"),
        (around(lambda x: x / (x.std(0) + 1)), "gives other results side by side than one by one"),
        (around(Remembers()), "gives other results side by side than one by one"),
        (around(lambda x: x * float(np.random.rand())), "gives other results side by side"),  # noqa: NPY002
        (around(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))), "PyTorch cannot run"),
        (around(lambda x: x[x[:, 0] > 0].sum(0) + x), "cannot be run for several clients at once"),
    ],
)
def test_what_cannot_be_run_side_by_side_is_found(network: nn.Module, reason: str) -> None:
    """Oracle: what the network does, known by how it is made."""
    found = obstacle(task(network), FedAvg())
    assert found is not None
    assert found.startswith("the network ")
    assert reason in found
    assert len(found) < 200


class Contrastive(FedAvg):
    """Each sample's loss depends on the others of its batch."""

    def loss(self, net: Any, batch: Any, start: Tensor, client: Any) -> Tensor:
        logits = net(batch.x)
        return cross_entropy(logits - logits.mean(0), batch.y)


class OneNorm(FedAvg):
    """Scales the gradients of all clients of a block by one norm."""

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient / gradient.norm()


@pytest.mark.parametrize(("method", "is_fine"), [(Contrastive(), False), (OneNorm(), False), (MOON(), True)])
def test_methods_are_tried_too(method: Algorithm, is_fine: bool) -> None:
    """Oracle: what the method does; one whose hooks read what only a round gives is not tried, its network is."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    found = obstacle(task(plain), method)
    assert (found is None) == is_fine
    assert found is None or found.startswith("the network or the method gives other results")
    assert obstacle(task(around(lambda x: x - x.mean(0))), SCAFFOLD()) is not None


def test_it_takes_little_time() -> None:
    """Oracle: 0.3 s, the shortest of three, once vmap is imported."""
    tried = task(around(nn.BatchNorm1d(16)))

    def seconds() -> float:
        began = time.perf_counter()
        obstacle(tried, FedAvg())
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.3
