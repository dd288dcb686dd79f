"""The convolutional networks of FedAvg (McMahan et al., 2017) and FeatureFusion (Yao et al., 2019)."""

from __future__ import annotations

from typing import Literal

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, PositiveInt
from fedmpi.typing import Backbone


@with_options
class McMahanCNN(Model):
    """The MNIST network of McMahan et al. (2017), also FeatureFusion's (Yao et al., 2019).

    5x5 convolutions of 32 and 64 channels, each with ReLU and 2x2 max pooling; then 512 hidden units.
    On 1x28x28 and 10 classes: 1,663,370 parameters and features [B, 64, 7, 7]; with padding "valid" 582,026
    and [B, 64, 4, 4].

    Args:
        padding: padding of the convolutions; same has the paper's parameter count, valid needs at least 16x16.
        dropout: dropout probability after the hidden units; McMahan et al. have none, Yao et al. do not state theirs.
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    padding: Literal["same", "valid"] = "same"
    dropout: BelowOne = 0.0
    norm: Norm = "none"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(32, 64))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, dropout_layer, norm_layer

        padding, smallest = (2, 4) if self.padding == "same" else (0, 16)
        channels, height, width = self.image(shape, at_least=smallest)
        extractor = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=padding),
            norm_layer(self.norm, 32, self.groups),
            nn.MaxPool2d(2),  # before the ReLU: the same values and gradients, for a quarter of the elements
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, padding=padding),
            norm_layer(self.norm, 64, self.groups),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        for _ in range(2):
            height, width = ((side + 2 * padding - 4) // 2 for side in (height, width))
        classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * height * width, 512),
            nn.ReLU(),
            dropout_layer(self.dropout),
            nn.Linear(512, outputs),
        )
        return Backbone(extractor, classifier)


@with_options
class CifarCNN(Model):
    """FeatureFusion's network for CIFAR-10 (Yao et al., 2019).

    Two times 5x5 convolution of 64 channels, ReLU, 3x3 max pooling with stride 2; then 384 and 192 hidden
    units. Padding, dropout and initialisation (Xavier-uniform weights, zero biases) are those of the authors'
    code. On 3x32x32 and 10 classes: 1,756,426 parameters, features [B, 64, 8, 8].

    Args:
        dropout: dropout probability after each layer of hidden units.
        norm: normalisation after each convolution (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    dropout: BelowOne = 0.2
    norm: Norm = "none"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=(64,))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, dropout_layer, norm_layer

        channels, height, width = self.image(shape)
        extractor = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2),
            norm_layer(self.norm, 64, self.groups),
            nn.MaxPool2d(3, stride=2, padding=1),  # before the ReLU, as in McMahanCNN
            nn.ReLU(),
            nn.Conv2d(64, 64, 5, padding=2),
            norm_layer(self.norm, 64, self.groups),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.ReLU(),
        )
        height, width = ((side + 3) // 4 for side in (height, width))  # halved twice, rounded up
        classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * height * width, 384),
            nn.ReLU(),
            dropout_layer(self.dropout),
            nn.Linear(384, 192),
            nn.ReLU(),
            dropout_layer(self.dropout),
            nn.Linear(192, outputs),
        )
        network = Backbone(extractor, classifier)
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        return network
