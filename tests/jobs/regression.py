"""Least squares, whose solution is known: a data set, a model, a partition and methods; used by import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpi.algorithms.ditto import Ditto
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.feddyn import FedDyn
from fedmpi.algorithms.fednova import FedNova
from fedmpi.algorithms.fedprox import FedProx
from fedmpi.algorithms.scaffold import SCAFFOLD
from fedmpi.data import Arrays, Dataset, Partition, Progress
from fedmpi.models import Model

if TYPE_CHECKING:
    from fedmpi.training.flat import Net
    from fedmpi.training.samples import Batch

CLIENTS, EACH, DIMENSION = 5, 12, 4


class Regression(Dataset):
    """For each of 5 clients 12 equations a'w = b; a sample is (a, b). The clients' solutions differ widely."""

    classes = 1

    def read(self, progress: Progress) -> Arrays:
        rng = np.random.default_rng(5)
        a = rng.standard_normal((CLIENTS, EACH, DIMENSION))
        solutions = 3 * rng.standard_normal((CLIENTS, DIMENSION, 1))
        b = a @ solutions + 0.1 * rng.standard_normal((CLIENTS, EACH, 1))
        x = np.concatenate([a, b], 2).reshape(-1, DIMENSION + 1).astype(np.float32)
        y = np.zeros(len(x), np.int64)
        return Arrays(x, y, x[:CLIENTS], y[:CLIENTS])


class InOrder(Partition):
    """Equal parts, in the order of the samples."""

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        return np.array_split(np.arange(len(labels)), clients)


class Residual(nn.Module):
    """One vector w; of a sample (a, b) it gives a'w - b."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.arange(1.0, dimension + 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :-1] * self.vector).sum(1, keepdim=True) - x[:, -1:]


class OneVector(Model):
    """A single parameter vector, which starts as (1, 2, 3, ...)."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Residual(shape[0] - 1)


class HalfSquares:
    """Half the squared residual in place of the cross entropy."""

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * net(batch.x)[:, 0].square()


class Slopes:
    """The residual itself in place of the cross entropy: the gradient of a client's loss is the same everywhere."""

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return net(batch.x)[:, 0]


class SquaresFedAvg(HalfSquares, FedAvg):
    """FedAvg on least squares."""


class SquaresFedProx(HalfSquares, FedProx):
    """FedProx on least squares."""


class SquaresDitto(HalfSquares, Ditto):
    """Ditto on least squares."""


class SquaresSCAFFOLD(HalfSquares, SCAFFOLD):
    """SCAFFOLD on least squares."""


class SquaresFedDyn(HalfSquares, FedDyn):
    """FedDyn on least squares."""


class SquaresFedNova(HalfSquares, FedNova):
    """FedNova on least squares."""
