"""Base of the methods with prototypes of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.toolbox.features import features_before_last_layer
from fedmpi.lazy import nn, torch
from fedmpi.typing import Batch, Federation, Net, Tensor


class Prototypical(Algorithm):
    """A pull of features towards prototypes, which are class means of features that clients send.

    Features z are the f inputs of the last fully connected layer. The loss of a sample of class y gets the additional
    term mu mean_f (z - c_y)^2, where c_y is the prototype of y. A class without a prototype has no such term.

    Attributes:
        mu: weight of the term; an option of each subclass.
        prototypes: [C f], the server's; NaN for a class of which no client has sent one yet.
    """

    hidden_state = ("prototypes",)
    needs_classes = looks_at_models = True
    takes_compression = takes_privacy = False

    mu: float

    def extend(self, network: nn.Module, example: Tensor) -> nn.Module:
        return features_before_last_layer(network, type(self).__name__)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.classes = fed.classes
        self.prototypes = torch.full((fed.classes * fed.at_clients.feature_shape.numel(),), math.nan)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        if not self.mu or "prototypes" not in client:
            return super().loss(net, batch, start, client)
        features = net.features(batch.x)
        theirs = client["prototypes"].view(self.classes, -1)[batch.y]
        apart = torch.where(theirs.isnan(), 0, features - theirs).square().mean(1)
        return self.task.loss(net.classify(features), batch.y) + self.mu * apart

    def updated(self, sent: Tensor) -> Tensor:
        """[C f], the weighted means of what the clients have sent; a class that nobody has keeps its prototype.

        Args:
            sent: [m, C (f + 1)] from `to_send`; NaN for a client from which nothing has arrived.
        """
        rows = sent.double().nan_to_num(nan=0.0).unflatten(1, (self.classes, -1))
        means, weights = rows[..., :-1], rows[..., -1:]
        total = weights.sum(0)
        old = self.prototypes.view(self.classes, -1)
        return torch.where(total > 0, (weights * means).sum(0) / total, old).flatten().to(old.dtype)


def to_send(means: Tensor, weights: Tensor) -> Tensor:
    """[C (f + 1)]: a client's class means [C, f], each followed by its weight [C]."""
    return torch.cat((means, weights[:, None]), 1).flatten()
