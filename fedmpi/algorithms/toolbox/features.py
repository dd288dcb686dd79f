"""Features in the sense of papers on personalised models: the inputs of the last fully connected layer."""

from __future__ import annotations

from fedmpi.errors import BadInput
from fedmpi.lazy import functional, nn
from fedmpi.typing import Backbone, Block, Federation, Tensor


def features_before_last_layer(network: nn.Module, method: str) -> Backbone:
    """The same network, regrouped so that its features are the inputs of its last fully connected layer.

    Args:
        method: its name, for the message.

    Raises:
        BadInput: the network does not end in such a layer.
    """
    from fedmpi.models._layers import before_last_layer

    split = before_last_layer(network)
    if split is None:
        raise BadInput(
            f"--model: {method} needs a Backbone or nn.Sequential that ends in a fully connected layer,"
            " without a forward of its own"
        )
    return split


def features_of(fed: Federation, block: Block, models: Tensor) -> list[Tensor]:
    """For each client of a block the features [n, f] of its n training samples, in float64.

    Args:
        models: [P] or [K, P].
    """
    found = fed.at_clients.features(block, models)
    return [rows[:count].double() for rows, count in zip(found, block.samples.tolist(), strict=True)]


def labels_of(fed: Federation, block: Block) -> list[Tensor]:
    """For each client of a block the labels [n, C] of its n training samples, one-hot, in float64."""
    found = fed.at_clients.targets(block)
    counts = block.samples.tolist()
    return [functional.one_hot(row[:count], fed.classes).double() for row, count in zip(found, counts, strict=True)]


def class_means(features: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
    """The means [C, f] of the features [n, f] of each class, and how many samples [C] it has.

    Args:
        one_hot: [n, C], the labels.
    """
    counts = one_hot.sum(0)
    return one_hot.T @ features / counts.clamp(min=1)[:, None], counts
