"""The interface of generators: options, and a method that builds the network."""

from __future__ import annotations

from abc import abstractmethod

from fedmpi.lazy import nn
from fedmpi.options import Configured
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Net, Tensor


class Generator(metaclass=Configured):
    """Base of the generators: networks that make samples or features of given classes from noise.

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
    """A generator of images that is trained on samples, for example at clients."""

    @abstractmethod
    def loss(self, net: Net, x: Tensor, labels: Tensor) -> Tensor:
        """[B], the loss of each sample; training minimises the mean.

        Args:
            net: runs the built network, or its parts.
            x: [B, C, H, W] images on the scale 0..1.
            labels: [B].
        """

    def images(self, made: Tensor) -> Tensor:
        """Sampled images on the scale 0..1, from the network's output [B, C, H, W]."""
        return made
