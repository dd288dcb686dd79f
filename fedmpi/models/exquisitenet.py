"""The small network of GenFL (Cho, Garst and Tax)."""

from __future__ import annotations

from functools import partial

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, PositiveInt
from fedmpi.typing import Backbone

_WIDTHS = (12, 50, 100, 200, 350)  # of the five stages; each halves the image, rounded up


@with_options
class ExquisiteNetV1(Model):
    """ExquisiteNet (Zhou and Su, 2020), as in GenFL: under a million parameters, for images of any size.

    A stage is 2x2 max pooling, a 1x1 convolution, and a block of two halves. A half is a 1x1 convolution, a depthwise
    3x3 convolution, and squeeze-and-excitation. The block's input is added to the output of each half. A 1x1
    convolution to 640 channels, the global average and dropout follow. Weights are initialised as by PyTorch's
    layers. Features: [B, 640]. On 1x28x28 and 10 classes: 927,254 parameters; batch norm keeps 4,272 floats in
    buffers, the statistics of 2,136 channels.

    Args:
        dropout: dropout probability before the last layer.
        norm: normalisation after the 1x1 convolutions but the last (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    dropout: BelowOne = 0.2
    norm: Norm = "batch"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=_WIDTHS)

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import (
            Backbone,
            Residual,
            SqueezeExcitation,
            dropout_layer,
            normalised_convolution,
        )

        inputs, _, _ = self.image(shape)
        convolution = partial(normalised_convolution, self.norm, self.groups)

        def half(width: int) -> nn.Module:
            return nn.Sequential(
                *convolution(width, width, 1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=width),
                nn.Hardswish(),
                SqueezeExcitation(width, width // 3),
            )

        layers: list[nn.Module] = []
        for width in _WIDTHS:
            layers += [nn.MaxPool2d(2, ceil_mode=True), *convolution(inputs, width, 1)]
            layers.append(Residual(nn.Sequential(Residual(half(width)), half(width))))
            inputs = width
        layers += [nn.Conv2d(inputs, 640, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return Backbone(nn.Sequential(*layers), nn.Sequential(dropout_layer(self.dropout), nn.Linear(640, outputs)))
