"""The network of depthwise convolutions of DistributionFusion (Duan et al., 2023)."""

from __future__ import annotations

from functools import partial
from typing import Literal

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Backbone

# Of each stage: expansion, channels, blocks, stride of the first block.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM = 32


@with_options
class MobileNetV2(Model):
    """MobileNetV2 (Sandler et al., 2018) for small images: only the last three of its five strides of 2 are kept.

    A block is a widening 1x1 convolution, a depthwise 3x3 convolution and a narrowing 1x1 convolution, with ReLU6
    after the first two. Blocks of stride 1 have a shortcut. ReLU follows the stem and the last convolution. Weights
    are initialised as by PyTorch's layers. Features: [B, 1280], the global average, or [B, 960]. On 3x32x32 and 10
    classes: 2,296,922 parameters; batch norm keeps 35,088 floats in buffers, the statistics of 17,544 channels.

    Args:
        variant: cifar: 1280 features; shortcuts are a 1x1 convolution where a block changes the number of channels.
            distribution_fusion: as in the code of Duan et al., 960 features, a 1x1 convolution with ReLU in every
            shortcut, 2,276,810 parameters.
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    variant: Literal["cifar", "distribution_fusion"] = "cifar"
    norm: Norm = "batch"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        # All other widths are multiples of one of these.
        require_groups(self, widths=(_STEM, *(width for _, width, _, _ in _STAGES)))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, Residual, normalised_convolution

        channels, _, _ = self.image(shape)
        convolution = partial(normalised_convolution, self.norm, self.groups)

        def block(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
            hidden = expansion * inputs
            residual = nn.Sequential(
                *convolution(inputs, hidden, 1),
                nn.ReLU6(),
                *convolution(hidden, hidden, 3, stride, depthwise=True),
                nn.ReLU6(),
                *convolution(hidden, outputs, 1),
            )
            if stride != 1:
                return residual
            if self.variant == "distribution_fusion":
                return Residual(residual, nn.Sequential(*convolution(inputs, outputs, 1), nn.ReLU()))
            if inputs != outputs:
                return Residual(residual, nn.Sequential(*convolution(inputs, outputs, 1)))
            return Residual(residual)

        layers = [*convolution(channels, _STEM, 3), nn.ReLU()]
        inputs = _STEM
        for expansion, width, blocks, stride in _STAGES:
            for number in range(blocks):
                layers.append(block(inputs, width, 1 if number else stride, expansion))
                inputs = width
        features = 1280 if self.variant == "cifar" else 960
        layers += [*convolution(inputs, features, 1), nn.ReLU()]
        extractor = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Backbone(extractor, nn.Linear(features, outputs))
