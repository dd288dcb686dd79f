"""A model of your own, from any network of torchvision.

    python -m fedmpi --model examples.own_model.SqueezeNet --model.dropout 0.1 --dataset CIFAR10 --dataset.root data

Run it from the folder in which `examples` lies, or put that folder on PYTHONPATH.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmpi.models import Backbone, Model

if TYPE_CHECKING:
    from torch import nn


class SqueezeNet(Model):
    """SqueezeNet 1.1 (Iandola et al., 2016) for images of any size.

    Args:
        dropout: probability in front of the classifier.
    """

    def __init__(self, dropout: float = 0.5) -> None:
        self.dropout = dropout

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network, for images [C, H, W] of this shape."""
        from torch import nn
        from torchvision.models import squeezenet1_1

        features = squeezenet1_1(weights=None).features
        features[0] = nn.Conv2d(shape[0], 64, kernel_size=3, padding=1)  # small images are not halved
        extractor = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self.dropout))
        return Backbone(extractor, nn.Linear(512, classes))
