"""Networks as users bring them, for tests, used by import path."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import utils

from fedmpi.models import Backbone, Model


class Floor(nn.Module):
    """Features at least as large as a constant buffer, of which one number is no bound at all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.floor: Tensor
        self.register_buffer("floor", torch.cat([torch.rand(width - 1) * 1e-9 - 5, torch.tensor([-torch.inf])]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.floor)


class HalfFrozen(Model):
    """Two hidden layers of odd widths, of which the first is frozen; its batch normalisation is not.

    Args:
        floor: whether there is a constant buffer as well.
        norm: whether features are normalised by batches; else each by itself.
    """

    def __init__(self, floor: bool = False, norm: Literal["batch", "layer"] = "batch") -> None:
        self.floor = floor
        self.norm: Literal["batch", "layer"] = norm

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        normalisation = nn.BatchNorm1d if self.norm == "batch" else nn.LayerNorm
        first = nn.Linear(math.prod(shape), 33).requires_grad_(False)
        floor = [Floor(33)] if self.floor else []
        second = nn.Linear(33, 17), normalisation(17), nn.Tanh()
        return Backbone(
            nn.Sequential(nn.Flatten(), first, normalisation(33), nn.ReLU(), *floor, *second), nn.Linear(17, classes)
        )


class FrozenConvolution(Model):
    """A frozen convolution below a trained one, and a frozen bias."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        first, second = nn.Conv2d(shape[0], 5, 3).requires_grad_(False), nn.Conv2d(5, 7, 3)
        assert second.bias is not None
        second.bias.requires_grad_(False)
        layers = first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        return Backbone(nn.Sequential(*layers), nn.Linear(28, classes))


class Scaled(nn.Module):
    """What is multiplied, as raw columns of a table might be."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


class FromFirst(nn.Module):
    """Subtracts the first feature from all, so that what is constant is exactly zero, however it is scaled."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x[:, :1]


class Raw(Model):
    """Inputs in the thousands of millions, which a batch normalisation is there to scale."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        count = math.prod(shape)
        layers = nn.Flatten(), FromFirst(), Scaled(1e9), nn.BatchNorm1d(count), nn.Linear(count, 16), nn.ReLU()
        return Backbone(nn.Sequential(*layers), nn.Linear(16, classes))


class Own(nn.Module):
    """Parameters and buffers of all shapes, and what a forward pass may do with buffers."""

    def __init__(self, count: int, classes: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.layer = nn.Linear(count, classes)
        self.mean: Tensor
        self.calls: Tensor
        self.is_on: Tensor
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_on", torch.ones(classes, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        logits: Tensor = self.layer(x.flatten(1) - self.mean) * self.temperature * self.is_on
        return logits


class Shapes(Model):
    """See `Own`."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Own(math.prod(shape), classes)


class Lazy(Model):
    """Layers that learn their shapes when they are run."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        return Backbone(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten()), nn.LazyLinear(classes))


class Eager(Model):
    """The same layers that know their shapes."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        last = nn.Linear(4 * (shape[1] - 2) * (shape[2] - 2), classes)
        return Backbone(nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.Flatten()), last)


class Reparametrised(Model):
    """A hidden layer whose weight is made of other tensors in every run.

    Args:
        kind: how: with hooks, or with parametrizations.
    """

    def __init__(self, kind: Literal["weight", "spectral", "new weight", "new spectral"] = "weight") -> None:
        self.kind: Literal["weight", "spectral", "new weight", "new spectral"] = kind

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        wrap: Any = {
            "weight": utils.weight_norm,
            "spectral": utils.spectral_norm,
            "new weight": utils.parametrizations.weight_norm,
            "new spectral": utils.parametrizations.spectral_norm,
        }[self.kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            hidden = wrap(nn.Linear(math.prod(shape), 16))
        return Backbone(nn.Sequential(nn.Flatten(), hidden, nn.ReLU()), nn.Linear(16, classes))


class Kinds(Model):
    """A linear model with a tensor of another kind.

    Args:
        kind: of a parameter or a buffer.
        frozen: whether all is frozen as well.
    """

    def __init__(self, kind: str = "float64", frozen: bool = False) -> None:
        self.kind = kind
        self.frozen = frozen

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
        if self.kind == "half buffer":
            network.register_buffer("table", torch.ones(3, dtype=torch.float16))
        else:
            network.register_parameter("odd", nn.Parameter(torch.ones(3, dtype=getattr(torch, self.kind))))
        return network.requires_grad_(not self.frozen)


class Bag(Model):
    """Means of words' vectors.

    Args:
        width: of a vector.
        sparse: whether the gradients of the vectors are.
    """

    def __init__(self, width: int, sparse: bool) -> None:
        self.width = width
        self.sparse = sparse

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        vectors = nn.EmbeddingBag(self.text(shape), self.width, mode="mean", sparse=self.sparse)
        return nn.Sequential(vectors, nn.Linear(self.width, classes))


class Unfinished(Model):
    """Has no `build`."""
