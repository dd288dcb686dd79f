"""The densely connected network of DistributionFusion (Duan et al., 2023)."""

from __future__ import annotations

from functools import partial

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Backbone

_LAYERS = (6, 12, 24, 16)  # of the four blocks; before each but the first, channels and image are halved


@with_options
class DenseNet121(Model):
    """DenseNet-121 (Huang et al., 2017) with the stem for small images, a 3x3 convolution without normalisation.

    A layer is a 1x1 convolution to four times `growth` channels and a 3x3 to `growth`, with normalisation and ReLU
    before each; its input is the output of all earlier layers of its block. Weights are initialised as by PyTorch's
    layers. Images of at least 8x8. Features: [B, 32 growth], the global average. On 3x32x32 and 10 classes: 6,956,298
    parameters, and batch norm keeps 83,520 floats in buffers, the statistics of 41,760 channels; with growth 12
    1,000,618 parameters, and 31,320 floats of 15,660 channels.

    Args:
        growth: channels that each layer adds; the code of Duan et al. uses 12.
        norm: normalisation before each convolution but the first (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    growth: PositiveInt = 32
    norm: Norm = "batch"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(2 * self.growth, 3 * self.growth))  # the others are multiples of growth, too

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, DenseLayer, norm_layer, normalised_convolution

        channels, _, _ = self.image(shape, at_least=8)
        growth, convolution = self.growth, partial(normalised_convolution, self.norm, self.groups)

        def normalisation(width: int) -> tuple[nn.Module, nn.Module]:
            return norm_layer(self.norm, width, self.groups), nn.ReLU()

        width = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
        for block, count in enumerate(_LAYERS):
            if block > 0:
                layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
            for _ in range(count):
                layer = (
                    *normalisation(width),
                    *convolution(width, 4 * growth, 1),
                    nn.ReLU(),
                    nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
                )
                layers.append(DenseLayer(nn.Sequential(*layer)))
                width += growth
            layers += normalisation(width)
        extractor = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Backbone(extractor, nn.Linear(width, outputs))
