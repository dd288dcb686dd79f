"""Coloured pictures with a mean and a standard deviation for each channel, and a network of one's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedmpi.data import Arrays, Dataset, Digits
from fedmpi.data.base import Progress
from fedmpi.models import Model


class Coloured(Dataset):
    """The digits, bright in a colour of their class: half of the classes are dark in the last channel."""

    classes = Digits.classes
    mean, std = (0.1, 0.6, 0.3), (0.05, 0.2, 0.4)

    def read(self, progress: Progress) -> Arrays:
        plain = Digits().read(progress)
        made = []
        for x, y in ((plain.train_x, plain.train_y), (plain.test_x, plain.test_y)):
            dark = np.where(y < 5, 64, 0)[:, None, None, None].astype(np.uint8)
            made += [np.concatenate([x // 5, 255 - x // 2, x // 4 + dark], axis=1), y]
        return Arrays(*made)


class Own(Model):
    """A network whose weights are only right with the buffers that are drawn with them.

    Args:
        width: of its hidden layer.
    """

    def __init__(self, width: int = 12) -> None:
        self.width = width

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Mixed(int(np.prod(shape)), self.width, classes)


class Mixed(nn.Module):
    """Two layers behind a random order of the inputs; scalars and layers that find out their width are among them."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.order: torch.Tensor
        self.register_buffer("order", torch.randperm(inputs))
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.first(x.flatten(1)[:, self.order]).tanh())
        return logits
