"""LeNet: the small convolutional networks for digits."""

from __future__ import annotations

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Backbone


@with_options
class LeNet(Model):
    """LeNet with normalisation, as in DistributionFusion (Duan et al., 2023) for MNIST and Fashion-MNIST.

    Two times 5x5 convolution (16, then 32 channels), normalisation, 2x2 max pooling, ReLU; then 60 hidden
    units. Features: [B, 32, H/4, W/4]. On 1x28x28 and 10 classes: 108,094 parameters; batch norm keeps 96
    floats in buffers.

    Args:
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    norm: Norm = "batch"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(16, 32))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, norm_layer

        channels, height, width = self.image(shape, at_least=4)
        extractor = nn.Sequential(
            nn.Conv2d(channels, 16, 5, padding=2),
            norm_layer(self.norm, 16, self.groups),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2),
            norm_layer(self.norm, 32, self.groups),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), 60),
            nn.ReLU(),
            nn.Linear(60, outputs),
        )
        return Backbone(extractor, classifier)


@with_options
class LeNet5(Model):
    """LeNet-5 (LeCun et al., 1998, with today's ReLU and max pooling), by default without normalisation.

    5x5 convolutions of 6 and 16 channels, the first one padded, each with 2x2 max pooling and ReLU; then 120
    and 84 hidden units. Images of at least 12x12. On 1x28x28 and 10 classes: 61,706 parameters, features
    [B, 16, 5, 5].

    Args:
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    norm: Norm = "none"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(6, 16))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, norm_layer

        channels, height, width = self.image(shape, at_least=12)
        extractor = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2),
            norm_layer(self.norm, 6, self.groups),
            nn.MaxPool2d(2),  # before the ReLU: the same values and gradients, for a quarter of the elements
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            norm_layer(self.norm, 16, self.groups),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, outputs),
        )
        return Backbone(extractor, classifier)
