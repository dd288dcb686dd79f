"""Building blocks of generators. Private, because importing it imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conditioned(nn.Module):
    """A network whose input is noise and one-hot label, concatenated.

    Args:
        of_noise: first layers of the noise [B, noise].
        of_label: first layers of the labels [B, classes].
        over_both: takes the concatenated results.
        classes: number of classes.
    """

    def __init__(self, of_noise: nn.Module, of_label: nn.Module, over_both: nn.Module, classes: int) -> None:
        super().__init__()
        self.of_noise = of_noise
        self.of_label = of_label
        self.over_both = over_both
        self.classes = classes

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        of_label = self.of_label(functional.one_hot(labels, self.classes).to(noise.dtype))
        made: Tensor = self.over_both(torch.cat([self.of_noise(noise), of_label], 1))
        return made
