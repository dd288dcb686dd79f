"""What a generator is to the rest of fedmpi: options, and a way to build the network that they describe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fedmpi.errors import require

if TYPE_CHECKING:
    from torch import nn


class Generator(ABC):
    """A family of conditional generators, described by the options of its constructor.

    The network that is built is called with standard normal noise [B, noise] and labels [B].

    Args:
        noise: length of the noise vector.
    """

    def __init__(self, noise: int = 100) -> None:
        require(noise >= 1, "noise", noise, "at least 1")
        self.noise = noise

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A freshly initialised float32 network, from noise [B, noise] and labels [B] to [B, *shape].

        It draws its weights from torch's global generator, which the caller seeds.

        Raises:
            BadInput: it cannot make samples of this shape.
        """
