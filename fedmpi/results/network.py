"""What `Run.network` gives: a trained network that takes samples as they lie in a data set's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_TAKES = {
    "uint8": "images as uint8 [B, C, H, W], from 0 to 255",
    "float32": "features as floating-point numbers [B, ...]",
    "int64": "tokens as whole numbers [B, L]",
}


class Network(nn.Module):
    """A network that takes samples as a data set's arrays hold them, and gives logits [B, classes].

    Args:
        network: takes images that are normalised already, features, or tokens as int64.
        inputs: what the arrays hold: uint8, float32 or int64.
        scale, shift: [C] or [1], by what pixels 0..255 of images are multiplied and what is added then.

    Attributes:
        network: the same.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, inputs: str, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.inputs = inputs
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor | NDArray[Any]) -> Tensor:
        """Logits [B, classes].

        Raises:
            TypeError: `x` is of another kind than the data set's arrays.
        """
        x = torch.tensor(x) if isinstance(x, np.ndarray) else x
        found = "uint8" if x.dtype == torch.uint8 else "float32" if x.is_floating_point() else "int64"
        if found != self.inputs:
            raise TypeError(f"the network takes {_TAKES[self.inputs]}, not {x.dtype}; the bare one is `.network`")
        x = x.to(self.scale.device)
        if self.inputs == "uint8":
            x = (x.movedim(1, -1).to(self.scale.dtype) * self.scale + self.shift).movedim(-1, 1)
        else:
            x = x.long() if self.inputs == "int64" else x.to(self.scale.dtype)
        logits: Tensor = self.network(x)
        return logits
