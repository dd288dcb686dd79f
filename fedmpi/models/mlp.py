"""Networks without convolutions, for inputs of any shape."""

from __future__ import annotations

from math import prod
from typing import Annotated

from fedmpi.lazy import nn
from fedmpi.models.base import Model, Norm, require_groups
from fedmpi.options import with_options
from fedmpi.ranges import Allowed, PositiveInt
from fedmpi.typing import Backbone


def _are_widths(hidden: tuple[int, ...]) -> bool:
    return len(hidden) > 0 and min(hidden) >= 1


@with_options
class MLP(Model):
    """Fully connected layers with ReLU; the default is the "2NN" of McMahan et al. (2017).

    Features: [B, width of the last hidden layer]. On 1x28x28 and 10 classes: 199,210 parameters.

    Args:
        hidden: widths of the hidden layers.
        norm: normalisation of each hidden layer, before its ReLU (layer: group norm with one group).
        groups: number of groups of group norm.
    """

    hidden: Annotated[tuple[int, ...], Allowed(_are_widths, "one or more widths of at least 1")] = (200, 200)
    norm: Norm = "none"
    groups: PositiveInt = 2

    def __post_init__(self) -> None:
        require_groups(self, widths=self.hidden)

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone, norm_layer

        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(shape)
        for units in self.hidden:
            layers += [
                nn.Linear(width, units),
                norm_layer(self.norm, units, self.groups, of_maps=False),
                nn.ReLU(),
            ]
            width = units
        return Backbone(nn.Sequential(*layers), nn.Linear(width, outputs))


class LogisticRegression(Model):
    """One linear layer; its features are the flat inputs. On 1x28x28 and 10 classes: 7,850 parameters."""

    def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
        from fedmpi.models._layers import Backbone

        return Backbone(nn.Flatten(), nn.Linear(prod(shape), outputs))
