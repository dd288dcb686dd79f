"""The result of `Run.network`: a trained network that takes samples as they are stored in a data set's arrays."""

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
    """A network that takes samples as they are stored in a data set's arrays, and returns logits [B, classes].

    Args:
        network: the network itself, which takes normalised images, features, or tokens as int64.
        inputs: the type of the data set's arrays: uint8 (images), float32 (features) or int64 (tokens).
        scale, shift: [C] or [1]; pixels 0..255 of images are normalised as `pixel * scale + shift`.

    Attributes:
        network: the network itself, without the normalisation.
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
        """Compute logits [B, classes].

        Args:
            x: images as uint8 [B, C, H, W], features as floating-point numbers [B, ...], or tokens as integers
                [B, L].

        Raises:
            TypeError: the type of `x` does not match the data set's arrays.
        """
        x = torch.tensor(x) if isinstance(x, np.ndarray) else x
        found = "uint8" if x.dtype == torch.uint8 else "float32" if x.is_floating_point() else "int64"
        if found != self.inputs:
            raise TypeError(
                f"the network takes {_TAKES[self.inputs]}, not {x.dtype}; `.network` takes preprocessed inputs"
            )
        x = x.to(self.scale.device)
        if self.inputs == "uint8":
            x = (x.movedim(1, -1).to(self.scale.dtype) * self.scale + self.shift).movedim(-1, 1)
        else:
            x = x.long() if self.inputs == "int64" else x.to(self.scale.dtype)
        logits: Tensor = self.network(x)
        return logits
