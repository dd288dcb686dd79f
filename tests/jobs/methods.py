"""Methods for tests, used by import path."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fesem import FeSEM
from fedmpi.algorithms.flhc import FLHC
from fedmpi.algorithms.ifca import IFCA
from fedmpi.models import Model
from fedmpi.training.block import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort
    from fedmpi.training.block import Block
    from fedmpi.training.flat import Net
    from fedmpi.training.samples import Batch


class LastRound(FedAvg):
    """Federated averaging that leaves the last round out."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if fed.round < fed.rounds:
            super().round(fed, cohort)


class Talking(FedAvg):
    """Federated averaging that says what it does, in more words than fit into any buffer."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        print("round", fed.round, "." * 100_000)
        super().round(fed, cohort)


class Noise(torch.nn.Module):
    """Adds random numbers by PyTorch's own generator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x) if self.training else x


class Noisy(Model):
    """Logistic regression on noisy inputs."""

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(Noise(), torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), classes))


class Rows(torch.nn.Module):
    """A small LSTM that reads an image row by row."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(width, 7, batch_first=True)
        self.head = torch.nn.Linear(7, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x[:, 0])
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


class Recurrent(Model):
    """A small recurrent network."""

    def build(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        return Rows(shape[-1], classes)


class Remembering(FedAvg):
    """Each client starts half-way between the global model and its own last one, and counts its rounds."""

    client_metrics = ("visits",)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.last = fed.client_state("last model", fed.initial_weights())
        self.visits = fed.client_state("visits", torch.zeros(1))

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, (start + self.last[block]) / 2, self)
            mean.add(local.weights, block)
            self.last[block] = local.weights
            self.visits[block] = self.visits[block] + 1
            fed.record(block, visits=self.visits[block][:, 0])
        self.weights = mean.reduce(empty=self.weights)


class Halfway(Remembering):
    """Measures each client's own model: half-way between the global one and its last one."""

    def evaluate(self, fed: Federation) -> None:
        fed.report_personal(fed.evaluate_clients(self.weights, self.own))

    def own(self, block: Block, weights: torch.Tensor) -> torch.Tensor:
        return (weights + self.last[block]) / 2


class EvenOnly(FedAvg):
    """Adds only the updates of even-numbered clients, as if the others had been lost."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self)
            kept = [k for k, client in enumerate(block.clients) if client % 2 == 0]
            mean.add(local.weights[kept], block.rows(kept))
        self.weights = mean.reduce(empty=self.weights)


class Planted(IFCA):
    """IFCA that starts from given models.

    Args:
        file: .npy of [models, P].
    """

    def __init__(self, file: Path) -> None:
        self.centers_given = torch.from_numpy(np.load(file))
        super().__init__(len(self.centers_given))

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.centers = self.centers_given.clone()


class Reordered(IFCA):
    """IFCA whose random first models are in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__(len(order))
        self.order = order

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.centers = self.centers[list(self.order)]


class Alike(IFCA):
    """IFCA whose first models are all the same."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.centers = self.centers[:1].repeat(self.models, 1)


class Keeping(FedAvg):
    """Keeps what was broadcast, in memory that the next round overwrites."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.previous = fed.broadcast(self.weights)


class Later(FedAvg):
    """FedAvg that starts from a given model after some rounds in which nothing happens.

    Args:
        file: .npy of [P].
        after: so many rounds.
    """

    def __init__(self, file: Path, after: int) -> None:
        self.given = torch.from_numpy(np.load(file))
        self.after = after

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.weights = self.given.clone()

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if fed.round > self.after:
            super().round(fed, cohort)


class ColdStart(FedAvg):
    """FedAvg whose first round is FedGroup's cold start with one group."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if fed.round > 1:
            super().round(fed, cohort)
            return
        start = fed.broadcast(self.weights)
        alike = replace(cohort, mass=np.minimum(cohort.mass, 1))
        mean = fed.weighted_mean(alike, start)
        for block in fed.my_clients(alike):
            mean.add(fed.train(block, start, self, Phase("cold start ")).weights, block)
        self.weights = mean.reduce()


class Renamed(FLHC):
    """FLHC that numbers its three clusters in another order."""

    def clusters(self, fed: Federation, compared: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.array([2, 0, 1])[super().clusters(fed, compared)]


class Watched(FeSEM):
    """FeSEM that keeps the models [M, P] and assignments [clients] from before and after every round, on one rank."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.seen = [(self.centers.clone(), self.assignment.clone())]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        super().round(fed, cohort)
        self.seen.append((self.centers.clone(), self.assignment.clone()))


class Hungry(FedAvg):
    """FedAvg for which no GPU is large enough."""

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 1 GiB."
        )


class Forgetful(FedAvg):
    """FedAvg with a momentum that is no state by its name, so that it does not outlive a job."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.momentum = torch.zeros_like(self.weights)

    def server_step(self, fed: Federation, mean: torch.Tensor) -> None:
        if fed.is_server:
            self.momentum = 0.5 * self.momentum + mean - self.weights
            self.weights = self.weights + self.momentum


class Extragradient(FedAvg):
    """Follows the gradient that the next batch has a step ahead, and a running mean of these, which a client keeps.

    The loss has a penalty on the mean output of a batch.
    """

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.trail = fed.client_state("trail", self.weights[: fed.layout.parameters])

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self, trail=self.trail[block])
            mean.add(local.weights, block)
            self.trail[block] = local.rows["trail"]
        self.weights = mean.reduce(empty=self.weights)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        outputs = net(batch.x)
        real = batch.real.view(-1, *[1] * (outputs.dim() - 1))
        middle = (outputs * real).sum(0) / batch.real.sum()
        return self.task.loss(outputs, batch.y) + 0.1 * middle.square().mean()

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        further = block.gradient(weights - 0.1 * gradient, ahead=1)
        block["trail"].mul_(0.5).add_(further, alpha=0.5)
        return further + 0.1 * block["trail"]
