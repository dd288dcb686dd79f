"""Networks with a part of each client's own. Private, because importing it imports torch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class TwoHeads(nn.Module):
    """The sum of two fully connected layers.

    Args:
        generic: the layer that all clients share. The personal one has its shape, and starts as zero.
    """

    def __init__(self, generic: nn.Linear) -> None:
        super().__init__()
        self.generic = generic
        self.personal = copy.deepcopy(generic)  # the last layer, and so the layout's head
        for parameter in self.personal.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.generic(features) + self.personal(features)
        return logits


class Shifted(nn.Module):
    """A fully connected layer of features to which a client's own vector is added, which starts as zero.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.shift = nn.Parameter(layer.weight.new_zeros(layer.in_features))
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layer(features + self.shift)
        return logits


class Mixed(nn.Module):
    """A shared network and a copy of it as the client's own: the mixture of their outputs.

    Args:
        shared: the network that all clients share.
    """

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.own = copy.deepcopy(shared)
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.own(x), self.shared(x))
        return mixed


class Mix(nn.Module):
    """alpha own + (1 - alpha) shared, with an alpha that starts as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, own: Tensor, shared: Tensor) -> Tensor:
        return self.alpha * own + (1 - self.alpha) * shared
