"""Residual networks (He et al., 2016), with stems for small or large images."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Backbone

_WIDTHS = (64, 128, 256, 512)  # of the four stages; each but the first halves the image


@with_options
class ResNet18(Model):
    """ResNet-18 (He et al., 2016). Convolutions have no bias and are initialised by Kaiming normal, fan-out.

    Features: [B, 512], the global average. On 3x32x32 and 10 classes: 11,173,962 parameters, 11,181,642 with
    the ImageNet stem; batch norm keeps 9,600 floats in buffers, the statistics of 4,800 channels.

    torchvision's published weights fit the ImageNet stem with batch norm (`--model.weights`).

    Args:
        stem: cifar: a 3x3 convolution. imagenet: a 7x7 convolution with stride 2, and max pooling, as FedFTG uses on
            CIFAR.
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm; 2 in the Fed-GN baseline.
    """

    stem: Literal["cifar", "imagenet"] = "cifar"
    norm: Norm = "batch"
    groups: PositiveInt = 2

    blocks: ClassVar[tuple[int, int, int, int]] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        require_groups(self, widths=_WIDTHS)

    def published(self) -> str | None:
        return f"resnet{2 + 2 * sum(self.blocks)}" if (self.stem, self.norm) == ("imagenet", "batch") else None

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import (
            Backbone,
            ResidualBlock,
            normalised_convolution,
            start_from_kaiming_normal,
        )

        channels, _, _ = self.image(shape)
        convolution = partial(normalised_convolution, self.norm, self.groups)
        if self.stem == "cifar":
            layers = [*convolution(channels, 64, 3), nn.ReLU()]
        else:
            layers = [*convolution(channels, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        inputs = 64
        for width, blocks in zip(_WIDTHS, self.blocks, strict=True):
            for _ in range(blocks):
                stride = 1 if inputs == width else 2
                layers.append(ResidualBlock(inputs, width, stride, self.norm, self.groups))
                inputs = width
        extractor = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        start_from_kaiming_normal(extractor)
        return Backbone(extractor, nn.Linear(512, outputs))


class ResNet34(ResNet18):
    """ResNet-34 (He et al., 2016): ResNet-18 with 3, 4, 6 and 3 blocks in its stages.

    Features: [B, 512]. On 3x32x32 and 10 classes: 21,282,122 parameters, with the ImageNet stem 21,289,802;
    batch norm keeps 17,024 floats in buffers, the statistics of 8,512 channels.
    """

    blocks = (3, 4, 6, 3)
