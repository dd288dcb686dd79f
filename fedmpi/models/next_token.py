"""The LSTM that predicts the next token."""

from __future__ import annotations

from fedmpi.lazy import nn
from fedmpi.models.base import Model
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Backbone


@with_options
class NextToken(Model):
    """An LSTM that predicts the next token at each place of a text, as in Reddi et al. (2021) for Stack Overflow.

    Embedded tokens are read forward by one LSTM layer. Two linear layers follow at each place: one to `projection`
    values, and one to the outputs, [B, L, outputs]. The output at a place depends only on the tokens up to it. Reddi
    et al. have embedding 96, hidden 670 and projection 96. Features: [B, L, projection]. With 100 tokens: 93,572
    parameters.

    Args:
        embedding: size of a token's embedding.
        hidden: size of the LSTM's state.
        projection: size of the values from which the outputs are computed.
    """

    embedding: PositiveInt = 32
    hidden: PositiveInt = 128
    projection: PositiveInt = 32

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone
        from fedmpi.models._recurrent import TextReader

        reader = TextReader(self.text(shape), self.embedding, self.hidden)
        extractor = nn.Sequential(reader, nn.Linear(self.hidden, self.projection))
        return Backbone(extractor, nn.Linear(self.projection, outputs))
