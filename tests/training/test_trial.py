"""Two clients are trained both ways before a run: what side by side would train wrongly is found."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.moon import MOON
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.models import MLP, ResNet18
from fedmpi.tasks import Classification
from fedmpi.tasks.losses import cross_entropy
from fedmpi.training import trial
from fedmpi.training.block import Block
from fedmpi.training.flat import FlatModel
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import LocalWork
from fedmpi.training.trial import obstacle
from tests.jobs.networks import Floor
from tests.support.experiments import CPU, SEED
from tests.training.test_draws import RANDOM, Attending
from tests.training.test_sidebyside import Function


def task(network: nn.Module) -> LocalWork:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), rng.integers(0, 10, 40)
    samples = Samples(x, y, (0.5,) * 3, (0.25,) * 3, CPU)
    shards = [np.arange(10), np.arange(10, 40)]
    return LocalWork(
        Classification(), FlatModel(network, CPU), samples, shards, lambda client: None, LocalTraining(), SEED
    )


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
        vectors = self.embedding(words) + nn.functional.embedding(words, self.embedding.weight, -2)
        logits: Tensor = self.head(vectors.mean(1))
        return logits


class Remembers(nn.Module):
    """Moves a buffer towards the mean over the batch, whichever rows it has.

    Args:
        share: of it that is subtracted.
    """

    mean: Tensor

    def __init__(self, share: float = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.share * self.mean


class CoreWords(Words):
    """Through a function of which PyTorch's vmap forgets the padding row, for all clients but the first."""

    def forward(self, x: Tensor) -> Tensor:
        words = (x.flatten(1) > 0).long()
        logits: Tensor = self.head(torch.embedding(self.embedding.weight, words, 1).mean(1))
        return logits


def by_value(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def tracked(momentum: float | None) -> nn.Module:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True, momentum=momentum)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(144, 10))


class Constant(nn.Module):
    """Multiplies by what is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = torch.rand(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.factors


class Single(nn.Module):
    """Insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = [torch.rand(16, 16, dtype=torch.float32)]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.factors[0]


class Dropped(nn.Module):
    """Draws in each pass, and changes nothing unless it draws less than a number that it rarely falls below."""

    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() >= 1e-9 else 0 * x


def hooked(register: Callable[[Tensor, Callable[[Tensor], None]], object]) -> nn.Module:
    """A network that reads the gradient of its first layer."""
    network = nn.Sequential(nn.Linear(8, 16), nn.Flatten(), nn.Linear(384, 10))
    register(network[0].weight, lambda tensor: None)  # type: ignore[arg-type]
    return network


class Uncopied(nn.Linear):
    """Holds on to a module, which nothing can copy."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.library = np


SHAPE = (3, 8, 8)
FINE: dict[str, Callable[[], nn.Module]] = {
    **{f"random {name}": partial(model.build, SHAPE, 10) for name, model in RANDOM.items()},
    "unused": Unused,
    "padding row": Words,
    "batch norm": lambda: around(nn.BatchNorm1d(16)),
    "cumulative": lambda: around(nn.BatchNorm1d(16, momentum=None)),
    "no statistics": lambda: around(nn.BatchNorm1d(16, track_running_stats=False)),
    "instance norm": lambda: tracked(0.1),
    "instance norm without momentum": lambda: tracked(None),
    "weight norm": lambda: around(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))),
    "attention": Attending,
    "frozen": lambda: nn.Sequential(around(nn.ReLU()).requires_grad_(False), nn.Linear(10, 10)),
    "constant": lambda: around(Constant()),
    "single precision": lambda: around(Single()),
    "not to be copied": lambda: around(Uncopied()),
    "deep": lambda: MLP((32,) * 8, norm="batch").build(SHAPE, 10),
    "residual": lambda: ResNet18().build(SHAPE, 10),
}


@pytest.mark.parametrize("name", FINE)
def test_nothing_against_layers_that_are_made_right(name: str) -> None:
    """Oracle: that they are right (test_sidebyside, test_draws); and the model is left as it was."""
    torch.manual_seed(0)
    tried = task(FINE[name]())
    before = tried.model.weights.clone()
    assert obstacle(tried, FedAvg()) is None
    assert torch.equal(tried.model.weights, before)
    assert torch.get_default_dtype() == before.dtype == torch.float32


def test_in_double_precision_it_is_the_same_network() -> None:
    """Oracle: the network itself: what is frozen, constant, and neither; and nothing of it is the other's memory."""
    module = nn.Sequential(around(Constant()), nn.Linear(10, 10).requires_grad_(False), Floor(10))
    tried = task(module)
    tried = replace(tried, model=FlatModel(copy.deepcopy(module), CPU, constant=["2.floor"]))
    exact = trial._in_double(tried)
    assert exact.model.layout == tried.model.layout
    assert exact.model.layout.frozen.keys() == tried.model.layout.frozen.keys()
    assert torch.equal(exact.model.weights.float(), tried.model.weights)
    x, precise = (one.samples.batch(np.arange(5)).x for one in (tried, exact))
    assert precise.dtype == torch.float64
    torch.testing.assert_close(exact.model.module(precise).float(), module(x))
    for tensor in (exact.model.weights, *exact.model.unsent.values()):
        tensor.zero_()
    assert module(x).any()


def test_rounding_would_look_like_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above could fail: in single precision the deep networks differ by more than is allowed."""
    monkeypatch.setattr(trial, "_in_double", lambda task: task)
    for name in ("deep", "residual"):
        torch.manual_seed(0)
        found = obstacle(task(FINE[name]()), FedAvg())
        assert found is not None
        assert "gives other results in a batched call" in found


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            around(by_value),
            "cannot run for several clients in one batched call: its forward pass depends on the values",
        ),
        (around(lambda x: x * x.mean().item()), "its forward pass depends on the values of tensors"),
        (
            around(lambda x: x + torch.poisson(torch.ones_like(x))),
            "it draws random numbers that cannot be separated by client",
        ),
        (around(lambda x: x - x.mean(0)), "gives other results in a batched call than for one client"),
        (around(lambda x: x / (x.std(0) + 1)), "gives other results in a batched call than for one client"),
        (around(Remembers()), "gives other results in a batched call than for one client"),
        (nn.Sequential(around(Single()), Function(lambda x: x - x.mean(0))), "gives other results in a batched call"),
        (
            nn.Sequential(around(Uncopied()), Function(lambda x: x - x.mean(0))),
            "gives other results in a batched call",
        ),
        (around(lambda x: x * float(np.random.rand())), "draws from random or numpy.random"),  # noqa: NPY002
        (around(Dropped()), "draws from random or numpy.random"),
        (hooked(Tensor.register_hook), "has a hook on the gradient of 0.weight"),
        (hooked(Tensor.register_post_accumulate_grad_hook), "has a hook on the gradient of 0.weight"),
        (around(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))), "PyTorch cannot run"),
        (around(lambda x: x[x[:, 0] > 0].sum(0) + x), "the shapes of its tensors depend on their values"),
        (around(lambda x: torch.zeros(16).add_(x.mean()) + x), "it changes a tensor in place"),
        (around(lambda x: torch.zeros(x.shape).copy_(x)), "it changes a tensor in place"),
        (
            around(Remembers(share=0)),
            "gives other results in a batched call than for one client (2.mean differs by 0.",
        ),
        (CoreWords(), "gives other results in a batched call than for one client (embedding.weight differs by 0."),
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


class Offset(FedAvg):
    """The loss alone depends on the other samples, not its gradient."""

    def loss(self, net: Any, batch: Any, start: Tensor, client: Any) -> Tensor:
        logits = net(batch.x)
        return cross_entropy(logits, batch.y) + logits.detach().mean()


@pytest.mark.parametrize(
    ("method", "is_fine"), [(Contrastive(), False), (OneNorm(), False), (Offset(), False), (MOON(), True)]
)
def test_methods_are_tried_too(method: Algorithm, is_fine: bool) -> None:
    """Oracle: what the method does; one whose hooks read what only a round gives is not tried, its network is."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    found = obstacle(task(plain), method)
    assert (found is None) == is_fine
    assert found is None or found.startswith("the network or the method gives ")
    assert obstacle(task(around(lambda x: x - x.mean(0))), SCAFFOLD()) is not None


def test_it_takes_little_time() -> None:
    """Oracle: 0.3 s, the shortest of three, once vmap is imported."""
    tried = task(around(nn.BatchNorm1d(16)))

    def seconds() -> float:
        began = time.perf_counter()
        obstacle(tried, FedAvg())
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.3
