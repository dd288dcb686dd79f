"""Networks with a part of each client's own. Private, because importing it imports torch."""

from __future__ import annotations

import copy

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
