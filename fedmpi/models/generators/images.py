"""The image generators of FedFTG (Zhang et al., CVPR 2022, tables 1(a) and 2(a) of the supplement)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from fedmpi.errors import BadInput
from fedmpi.models.generators.base import Generator
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import ConvolutionalGenerator


@with_options
class ImageGenerator(Generator):
    """FedFTG's generator for CIFAR (its table 1(a)): 128 maps, two convolutions and two upsamplings.

    Height and width of the images must be multiples of 4. For 3x32x32: 682,499 parameters with 10 classes and a noise
    of 100, 1,690,115 with 100 classes and a noise of 256.

    Args:
        noise: length of the noise vector.
        final_norm: whether the output is batch-normalised, as in the authors' code, so that images have the scale of
            normalised data. If not, they are between -1 and 1, as in the paper's table.
        order: order of a convolution and its upsampling. paper: convolution first. repo: upsampling first, as in the
            authors' code, which takes four times the work.
    """

    noise: PositiveInt = 100
    final_norm: bool = True
    order: Literal["paper", "repo"] = "paper"

    def build(self, shape: tuple[int, ...], classes: int) -> ConvolutionalGenerator:
        from fedmpi.models.generators._convolutional import ConvolutionalGenerator, convolution, doubling

        channels, height, width = _image(self, shape, 4)
        stages = [[*convolution(128, 128), doubling()], [*convolution(128, 64), doubling()]]
        if self.order == "repo":
            stages = [[layers[-1], *layers[:-1]] for layers in stages]
        start, body = (128, height // 4, width // 4), [layer for stage in stages for layer in stage]
        return ConvolutionalGenerator(self.noise, classes, start, body, 64, channels, self.final_norm)


@with_options
class DeepImageGenerator(Generator):
    """FedFTG's generator for larger images (its table 2(a)): 512 maps, four upsamplings and convolutions.

    Height and width of the images must be multiples of 16. With a noise of 256: 4,963,779 parameters for 3x112x112
    and 11 classes, 3,465,411 for 3x64x64 and 200 classes.

    Args:
        noise: length of the noise vector.
        final_norm: whether the output is batch-normalised, as in the authors' code. If not, it is between -1 and 1.
    """

    noise: PositiveInt = 256
    final_norm: bool = True

    def build(self, shape: tuple[int, ...], classes: int) -> ConvolutionalGenerator:
        from fedmpi.models.generators._convolutional import ConvolutionalGenerator, convolution, doubling

        channels, height, width = _image(self, shape, 16)
        widths = (512, 256, 128, 64, 64)
        stages = [[doubling(), *convolution(*pair)] for pair in pairwise(widths)]
        start, body = (512, height // 16, width // 16), [layer for stage in stages for layer in stage]
        return ConvolutionalGenerator(self.noise, classes, start, body, 64, channels, self.final_norm)


def _image(generator: Generator, shape: tuple[int, ...], divisor: int) -> tuple[int, int, int]:
    """`shape` as (channels, height, width), or `BadInput` if it is not an image of a suitable size."""
    match shape:
        case (channels, height, width) if height % divisor == width % divisor == 0:
            return channels, height, width
    raise BadInput(
        f"= {type(generator).__name__}: cannot make samples of shape {shape}: "
        f"it makes images (channels, height, width) whose height and width are multiples of {divisor}",
        "generator",
    )
