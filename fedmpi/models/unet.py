"""The U-Net, for segmentation."""

from __future__ import annotations

from functools import partial

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt
from fedmpi.typing import Backbone


@with_options
class UNet(Model):
    """A small U-Net (Ronneberger et al., 2015) for segmentation: an output for each pixel, [B, outputs, H, W].

    Each level has two 3x3 convolutions, each with normalisation and ReLU. The next level has maps of half the size
    (2x2 max pooling) and twice as many channels. Its result is enlarged by a transposed 2x2 convolution, concatenated
    with the level's own maps, and passes through two more 3x3 convolutions. Convolutions are padded, so the output
    has the size of the image. Images whose sides are not multiples of 2^depth are padded, and the output is cropped.
    3x3 convolutions have no bias and are initialised by Kaiming normal, fan-out.

    Features: [B, width, H, W], which one linear layer classifies pixel by pixel. On 1x28x28 and 11 classes: 117,243
    parameters; batch norm keeps 640 floats in buffers.

    Args:
        width: channels of the first level.
        depth: number of levels below the first.
        norm: normalisation after each 3x3 convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    width: PositiveInt = 16
    depth: NonNegativeInt = 2
    norm: Norm = "batch"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(self.width * 2**level for level in range(self.depth + 1)))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import (
            Backbone,
            DenseLayer,
            Padded,
            PerPixel,
            normalised_convolution,
            start_from_kaiming_normal,
        )

        channels, _, _ = self.image(shape)
        convolution = partial(normalised_convolution, self.norm, self.groups)

        def twice(inputs: int, width: int) -> list[nn.Module]:
            return [*convolution(inputs, width, 3), nn.ReLU(), *convolution(width, width, 3), nn.ReLU()]

        def level(inputs: int, width: int, below: int) -> nn.Sequential:
            if below == 0:
                return nn.Sequential(*twice(inputs, width))
            smaller = level(width, 2 * width, below - 1)
            halved = nn.Sequential(nn.MaxPool2d(2), smaller, nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            return nn.Sequential(*twice(inputs, width), DenseLayer(halved), *twice(2 * width, width))

        extractor = Padded(level(channels, self.width, self.depth), 2**self.depth)
        start_from_kaiming_normal(extractor)
        return Backbone(extractor, PerPixel(nn.Linear(self.width, outputs)))
