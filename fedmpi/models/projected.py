"""The projection head of MOON (Li et al., 2021), before the last layer of another network."""

from __future__ import annotations

from fedmpi.errors import BadInput
from fedmpi.lazy import nn
from fedmpi.models.base import Model
from fedmpi.models.lenet import LeNet
from fedmpi.options import null_for, with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Backbone


@with_options
class Projected(Model):
    """Another network with a projection head before its last layer, as in MOON (Li et al., 2021).

    The input of the other network's last fully connected layer has f values. Two layers (f hidden units with ReLU)
    project them to `size` values, which a new last layer classifies. Features: [B, size]. For LeNet on 1x28x28 and 10
    classes: 129,330 parameters.

    Args:
        over: the network that is wrapped; null: LeNet.
        size: output size of the projection.
    """

    over: Model = null_for(LeNet)
    size: PositiveInt = 256

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, without_last

        self.over.vocabulary = self.vocabulary
        network = self.over.make(shape, outputs)
        before, last = without_last(network)
        if not isinstance(network, Backbone) or not isinstance(last, nn.Linear):
            raise BadInput(f"= {type(self.over).__name__}: must be a Backbone that ends in a linear layer", "over")
        width = last.in_features
        projection = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.size)
        return Backbone(nn.Sequential(*before, *projection), nn.Linear(self.size, outputs))
