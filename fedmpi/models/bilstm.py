"""The bidirectional LSTM for texts."""

from __future__ import annotations

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, PositiveInt
from fedmpi.typing import Backbone


@with_options
class BiLSTM(Model):
    """A bidirectional LSTM for texts, as in DistributionFusion (Duan et al., 2023) for Sentiment140.

    Embedded tokens are read forward and backward by an LSTM layer each (Graves and Schmidhuber, 2005); the two last
    states are normalised and classified by one linear layer. Duan et al. do not state their sizes. Features:
    [B, 2 * hidden], normalised. With 20,000 tokens and 2 classes: 2,236,546 parameters; batch norm keeps 512 floats
    in buffers.

    Args:
        embedding: size of a token's embedding.
        hidden: size of each LSTM's state.
        norm: normalisation of the features (layer: group norm with one group).
        groups: number of groups of group norm.
        dropout: dropout probability between the features and the linear layer.
    """

    embedding: PositiveInt = 100
    hidden: PositiveInt = 128
    norm: Norm = "batch"
    groups: PositiveInt = 2
    dropout: BelowOne = 0.5

    def __post_init__(self) -> None:
        require_groups(self, widths=(2 * self.hidden,))

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, dropout_layer, norm_layer
        from fedmpi.models._recurrent import TextEncoder

        width = 2 * self.hidden
        extractor = nn.Sequential(
            TextEncoder(self.text(shape), self.embedding, self.hidden),
            norm_layer(self.norm, width, self.groups, of_maps=False),
        )
        classifier = nn.Sequential(dropout_layer(self.dropout), nn.Linear(width, outputs))
        return Backbone(extractor, classifier)
