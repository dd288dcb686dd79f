"""Classes that draw from the generators which Python, NumPy and PyTorch keep for everybody; used by import path.

In every place where fedmpi calls a user's code: each draws from all three, so that what comes out is another one if a
single one of them is not seeded.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Arrays, Dataset, Digits, Partition
from fedmpi.models import Model
from fedmpi.policies import Availability, Cohort, Conditions, Pool, RoundPlan, Sampler, Workload
from fedmpi.policies.attacks import Attack
from fedmpi.policies.compression import Compression
from fedmpi.policies.server_optimizers import ServerOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from fedmpi.data.base import Progress
    from fedmpi.federation.federation import Federation
    from fedmpi.training.block import Block
    from fedmpi.training.flat import Net
    from fedmpi.training.samples import Batch


def draw(*shape: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), of all three generators."""
    of_python = np.array([random.random() for _ in range(math.prod(shape))]).reshape(shape)
    return (of_python + np.random.rand(*shape) + torch.rand(shape).numpy().astype(np.float64)) % 1  # noqa: NPY002


def shuffled(count: int) -> NDArray[np.int64]:
    return draw(count).argsort()


AT_IMPORT = float(draw(1)[0])


class Projected(torch.nn.Module):
    """Logistic regression on random features, which are no tensors of the state, with noise in either mode."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.project = torch.tensor(draw(inputs, 32) - 0.5, dtype=torch.float32)
        self.shift = AT_IMPORT
        self.head = torch.nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        noise = 0.1 * float(draw(1)[0])
        logits: Tensor = self.head(torch.tanh(x.flatten(1) @ self.project + self.shift + noise))
        return logits


class Network(Model):
    def __init__(self) -> None:
        self.width = 1 + AT_IMPORT * float(draw(1)[0])

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        made = Projected(math.prod(shape), classes)
        made.project *= self.width
        return made


class Half(Dataset):
    """A random half of the digits."""

    classes = 10

    def read(self, progress: Progress) -> Arrays:
        all_ = Digits().read(progress)
        some = shuffled(len(all_.train_y))[: len(all_.train_y) // 2]
        return Arrays(all_.train_x[some], all_.train_y[some], all_.test_x, all_.test_y)


class Split(Partition):
    permutes_pixels = True
    relabels = True

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        return np.array_split(shuffled(len(labels)), clients)

    def groups(self, clients: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return shuffled(clients) % 3

    def pixels(self, group: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        order = np.arange(count)
        order[:8] = shuffled(8)
        return order

    def relabelled(self, group: int, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
        order = np.arange(classes)
        order[:2] = shuffled(2)
        return order


class Some(Availability):
    def present(self, round: int, clients: int, seed: int) -> NDArray[np.bool_]:
        return draw(clients) < 0.8


class Drawn(Sampler):
    """Draws twice as many as are wanted, and then chooses."""

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        return pool.available[shuffled(len(pool.available))[: 2 * size]]

    def choose(self, drawn: Cohort, size: int, losses: Callable[[], NDArray[np.float64]]) -> Cohort:
        order = np.argsort(losses() + 0.5 * draw(len(drawn)))
        return drawn.subset(np.sort(order[: size + (draw(1)[0] < 0.5)]))


class Lossy(Conditions):
    def plan(self, asked: Cohort, size: int, workload: Workload, seed: int) -> RoundPlan:
        return RoundPlan(asked.subset(np.sort(shuffled(len(asked))[1:])))


class Noise(Attack):
    def __init__(self) -> None:
        super().__init__(0.3)

    def malicious(self, clients: int, seed: int) -> NDArray[np.bool_]:
        return draw(clients) < self.share

    def poison(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        return shuffled(classes)[labels]

    def change(self, change: Tensor, rngs: object) -> Tensor:
        return change + 0.01 * torch.from_numpy(draw(*change.shape)).float()


class Rounded(Compression):
    """Every number, or nothing of it, by chance."""

    def bytes(self, count: int) -> int:
        return 4 * count

    def compress(self, change: Tensor, kept: Tensor, keys: NDArray[np.uint64], round: int) -> Tensor:
        return change * torch.from_numpy(draw(*change.shape) < 0.9)


class Rule(ServerOptimizer):
    def update(self, delta: Tensor) -> Tensor:
        return delta * float(0.5 + draw(1)[0])


class Method(FedAvg):
    """Draws wherever a method may."""

    @property
    def takes_held_out(self) -> bool:
        return True

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.step = float(draw(1)[0])

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        assert isinstance(network, Projected)
        network.shift += float(draw(1)[0])
        return network

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        return cohort + int(draw(1)[0] < 0.5)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        before = float(draw(1)[0])
        for block in fed.my_clients(cohort):
            shifted = start + 0.01 * (before + float(draw(1)[0]))
            mean.add(fed.train(block, shifted, self).weights, block)
        change = mean.reduce(empty=self.weights) - self.weights
        self.server_step(fed, self.weights + (self.step + float(draw(1)[0])) * change)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return super().loss(net, batch, start, client) * float(0.5 + draw(1)[0])

    def evaluate(self, fed: Federation) -> None:
        if fed.is_server:
            self.weights = self.weights * (0.99 + 0.01 * float(draw(1)[0]))
        found = fed.evaluate_clients(self.weights, self.own)
        fed.log(own_accuracy=found.main + float(draw(1)[0]))
        super().evaluate(fed)

    @staticmethod
    def own(block: Block, received: Tensor) -> Tensor:
        """A client's model, which is the global one or its opposite."""
        return received[None] * (1 if draw(1)[0] < 0.5 else -1)
