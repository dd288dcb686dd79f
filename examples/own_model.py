"""A model of your own, from any network of torchvision.

    python -m fedmpi --model examples.own_model.SqueezeNet --model.dropout 0.1 --dataset CIFAR10 --dataset.root data

Run it from the folder in which `examples` lies, or put that folder on PYTHONPATH.
"""

from __future__ import annotations

from typing import Annotated

from torch import nn
from torchvision.models import squeezenet1_1

from fedmpi.models import Backbone, Model
from fedmpi.options import with_options
from fedmpi.ranges import interval


@with_options
class SqueezeNet(Model):
    """SqueezeNet 1.1 (Iandola et al., 2016) for images of any size.

    Args:
        dropout: probability in front of the classifier.
    """

    dropout: Annotated[float, interval("[0, 1)")] = 0.5

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network, for images [C, H, W] of this shape."""
        features = squeezenet1_1(weights=None).features
        features[0] = nn.Conv2d(shape[0], 64, kernel_size=3, padding=1)  # small images are not halved
        extractor = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self.dropout))
        return Backbone(extractor, nn.Linear(512, classes))
