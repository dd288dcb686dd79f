"""The conditional variational autoencoder of GenFL (Cho, Garst and Tax)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated

from fedmpi.errors import BadInput
from fedmpi.lazy import functional, nn, torch
from fedmpi.models.generators.base import LearningGenerator
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt, are_widths
from fedmpi.typing import Net, Tensor

_LEAST_STD = 1e-6


@with_options
class CVAE(LearningGenerator):
    """A variational autoencoder (Kingma and Welling, 2014) whose decoder gets the class as an input.

    All layers are fully connected. The encoder, which does not get the class, computes the mean and (by softplus) the
    standard deviation of a Gaussian. The decoder gets a draw from it and the label. For 1x28x28, 10 classes and a
    noise of 3: 1,072,150 parameters.

    Args:
        noise: length of the noise vector, the latent dimensions.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        binary: whether training images and generated images are rounded to 0 and 1, as in the paper. Generated images
            are first divided by their largest value. If not, grey values and colours are kept.
    """

    noise: PositiveInt = 3
    hidden: Annotated[Sequence[int], are_widths] = (512, 256)
    binary: bool = True

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from fedmpi.models.generators._conditioned import Conditioned
        from fedmpi.models.generators._variational import Autoencoder

        if len(shape) != 3:
            raise BadInput(f"= {type(self).__name__}: makes images, not samples of shape {shape}", "generator")

        def layers(*widths: int) -> list[nn.Module]:
            made: list[nn.Module] = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
            return made[:-1]

        inner = layers(prod(shape), *self.hidden, 2 * self.noise)
        outer = layers(self.noise + classes, *reversed(self.hidden), prod(shape))
        decoder = nn.Sequential(*outer, nn.Sigmoid(), nn.Unflatten(1, shape))
        return Autoencoder(
            nn.Sequential(nn.Flatten(), *inner), Conditioned(nn.Identity(), nn.Identity(), decoder, classes)
        )

    def loss(self, net: Net, x: Tensor, labels: Tensor) -> Tensor:
        """[B]: the squared error summed over an image, plus the divergence from N(0, 1) summed over dimensions.

        The paper sums over the batch; the engine takes the mean. The factor between them has no effect with Adam.
        """
        target = x.round() if self.binary else x
        mean, raw = net.run("encoder", target).chunk(2, -1)
        std = functional.softplus(raw) + _LEAST_STD
        made = net.run("decoder", mean + std * torch.randn_like(std), labels)
        return (made - target).square().flatten(1).sum(1) + divergence(mean, std)

    def images(self, made: Tensor) -> Tensor:
        if not self.binary:
            return made
        return (made / made.amax(dim=(1, 2, 3), keepdim=True)).round()


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """[B], KL(N(mean, std) || N(0, 1)) of independent dimensions [B, D]."""
    return ((mean.square() + std.square() - 1) / 2 - std.log()).sum(1)
