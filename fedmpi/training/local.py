"""Local training: what one client does between receiving a model and returning it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.algorithms.base import Algorithm
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.optimizers import SGD, Adam
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.settings import LocalTraining

#: client -> [H * W] the order in which it sees the pixels of its images, or None
PixelOrder = Callable[[int], Tensor | None]


class Hooks(Protocol):
    """What an algorithm may change in a local step; see `fedmpi.algorithms.Algorithm`."""

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor: ...

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor: ...


@dataclass
class Block:
    """K clients that a rank trains together.

    Attributes:
        clients: [K] their numbers.
        samples: [K] how many training samples each holds.
        mass: [K] int64, what each counts in a mean over the cohort.
        vectors: named rows [K, ...] that the hooks may read, given to `Federation.train`.
    """

    clients: NDArray[np.int64]
    samples: NDArray[np.int64]
    mass: NDArray[np.int64]
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[name]


@dataclass
class Work:
    """What a block's training cost: `loss` [K] mean over the samples seen, `steps` [K], `seconds` [K]."""

    loss: NDArray[np.float64]
    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]


class Trainer:
    """Trains clients of one rank, one after another, in one flat model.

    Args:
        model: the network that is trained; after `train` its vector holds the client's result.
        samples: the whole training set.
        shards: which samples each client holds.
        pixels: client -> the order in which it sees the pixels of its images, or None.
        settings: see `LocalTraining`.
        seed: of the experiment.
    """

    def __init__(
        self,
        model: FlatModel,
        samples: Samples,
        shards: list[NDArray[np.int64]],
        pixels: PixelOrder,
        settings: LocalTraining,
        seed: int,
    ) -> None:
        self.model = model
        self.samples = samples
        self.shards = shards
        self.pixels = pixels
        self.settings = settings
        self.seed = seed
        self._optimizer = self._make_optimizer()

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int) -> Work:
        """Train the block's one client from `start` [1, P]."""
        began = time.perf_counter()
        client = int(block.clients[0])
        model, settings, optimizer = self.model, self.settings, self._optimizer
        trained = model.layout.parameters
        weights, gradient, origin = model.weights[:, :trained], model.gradient, start[:, :trained]
        lr = settings.rate(round, rounds)
        corrects = type(hooks).direction is not Algorithm.direction
        rows = {name: value[0] for name, value in block.vectors.items()}
        net = Net(model)
        total, seen, steps = torch.zeros((), device=model.device), 0, 0

        model.load(start[0])
        # One sample has no variance: a client that holds no more trains with the statistics it received.
        model.module.train(not (model.normalises_batches and len(self.shards[client]) == 1))
        optimizer.reset()
        torch.manual_seed(randomness.key(self.seed, "dropout", round, client))
        for batch in self._batches(client, round):
            losses = hooks.loss(net, batch, start[0], rows)
            if losses.shape != batch.y.shape:
                raise ValueError(f"loss returned {list(losses.shape)}, not a loss for each of {len(batch)} samples")
            loss = losses.mean()
            model.backward(loss)
            with torch.no_grad():
                step = hooks.direction(gradient, weights, origin, block) if corrects else gradient
                if settings.clip_norm:
                    norm = torch.linalg.vector_norm(step, dim=1, keepdim=True)
                    step = step * (settings.clip_norm / norm).clamp_(max=1)
                optimizer.step(weights, step, lr)
                total.add_(loss, alpha=len(batch))
            seen += len(batch)
            steps += 1
        mean = total.item() / seen if seen else math.nan
        seconds = time.perf_counter() - began
        return Work(np.array([mean]), np.array([steps]), np.array([seconds]))

    def count_steps(self, samples: int) -> int:
        """Optimizer steps of a client with so many samples."""
        return self.settings.count_steps(samples, self.model.normalises_batches)

    def _batches(self, client: int, round: int) -> Iterator[Batch]:
        shard = self.shards[client]
        pixels = self.pixels(client)
        cuts = self.settings.batches(len(shard), self.model.normalises_batches)
        steps = self.count_steps(len(shard))
        draws = None
        for step in range(steps):
            epoch, place = divmod(step, len(cuts))
            if place == 0:
                order = self._hashed(f"order {epoch}", round, client, len(shard)).argsort(kind="stable")
                if self.settings.augmentation != "none":
                    draws = self._hashed(f"augmentation {epoch}", round, client, 3 * len(shard)).reshape(-1, 3)
            chosen = order[cuts[place]]
            bits = None if draws is None else draws[chosen]
            yield self.samples.batch(shard[chosen], pixels, self.settings.augmentation, bits)

    def _hashed(self, purpose: str, round: int, client: int, count: int) -> NDArray[np.uint64]:
        return randomness.hashed_bits(randomness.keys(self.seed, purpose, round, [client]), count)[0]

    def _make_optimizer(self) -> SGD | Adam:
        shape, device = self.model.gradient.shape, self.model.device
        if self.settings.optimizer == "adam":
            return Adam(shape, device, self.settings.weight_decay)
        return SGD(shape, device, self.settings.momentum, self.settings.weight_decay)
