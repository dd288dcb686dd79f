"""What a generator is to the rest of fedmpi: options, and a way to build the network that they describe."""

from __future__ import annotations

from abc import abstractmethod

from fedmpi.lazy import nn
from fedmpi.options import Configured
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Net, Tensor


class Generator(metaclass=Configured):
    """A family of conditional generators, described by its options.

    The network that is built is called with standard normal noise [B, noise] and labels [B].

    Args:
        noise: length of the noise vector.
    """

    def __init__(self, noise: PositiveInt = 100) -> None:
        self.noise = noise

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A freshly initialised float32 network, from noise [B, noise] and labels [B] to [B, *shape].

        It draws its weights from torch's global generator, which the caller seeds.

        Raises:
            BadInput: it cannot make samples of this shape.
        """


class LearningGenerator(Generator):
    """A generator of images that learns from samples, wherever these are: at clients, say."""

    @abstractmethod
    def loss(self, net: Net, x: Tensor, labels: Tensor) -> Tensor:
        """[B], what training minimises the mean of.

        Args:
            net: runs the network that was built, whole or by its parts.
            x: [B, C, H, W] images on the scale 0..1.
            labels: [B].
        """

    def images(self, made: Tensor) -> Tensor:
        """What becomes of the network's output [B, C, H, W] when images are sampled, on the scale 0..1."""
        return made
