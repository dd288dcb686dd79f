"""What a model is to the rest of fedmpi: options, and a way to build the network that they describe."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal, Protocol

from fedmpi.errors import BadInput, require
from fedmpi.lazy import nn
from fedmpi.options import Configured
from fedmpi.ranges import PositiveInt

Norm = Literal["batch", "group", "layer", "none"]


class Model(metaclass=Configured):
    """A family of networks, described by its options.

    Any `nn.Module` will do as a network; a `Backbone` also offers the features before its classifier, which
    some algorithms need. A model of your own, used with `--model my_module.Small --model.maps 32`:

        from torch import nn
        from fedmpi.models import Backbone, Model
        from fedmpi.options import with_options
        from fedmpi.ranges import PositiveInt

        @with_options
        class Small(Model):
            maps: PositiveInt = 16

            def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
                channels, height, width = self.image(shape)
                extractor = nn.Sequential(nn.Conv2d(channels, self.maps, 3, padding=1), nn.ReLU())
                classifier = nn.Sequential(nn.Flatten(), nn.Linear(self.maps * height * width, classes))
                return Backbone(extractor, classifier)

    Many clients are trained at once under `torch.func.vmap`, so control flow must not depend on values.
    The models of this package import torch inside `build` only, so that the command line's --help is fast.

    Attributes:
        vocabulary: number of different tokens of the inputs, set by the experiment; None: they are no text.
    """

    vocabulary: int | None = None

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A freshly initialised float32 network, from inputs [B, *shape] to raw logits [B, classes].

        What it draws, it draws from the global generators of torch, numpy.random or random, which the caller seeds:
        the network must be the same on every rank, and each time that it is built. Parameters whose `requires_grad`
        is False are frozen for good.
        """

    def image(self, shape: tuple[int, ...], at_least: int = 1) -> tuple[int, int, int]:
        """`shape` as (channels, height, width), or `BadInput` if it is no image or too small a one."""
        match shape:
            case (channels, height, width) if min(height, width) >= at_least:
                return channels, height, width
        raise BadInput(
            f"{type(self).__name__} cannot take inputs of shape {shape}: "
            f"it needs images (channels, height, width) of at least {at_least}x{at_least}"
        )

    def text(self, shape: tuple[int, ...]) -> int:
        """How many different tokens there are, or `BadInput` if inputs of this `shape` are no texts."""
        if len(shape) == 1 and self.vocabulary is not None:
            return self.vocabulary
        raise BadInput(
            f"{type(self).__name__} cannot take inputs of shape {shape}: "
            "it needs texts (tokens,) from a data set with a vocabulary"
        )


class Normalised(Protocol):
    """A model with layers of normalisation, of a kind that one may choose."""

    norm: Norm
    groups: PositiveInt


def require_groups(model: Normalised, widths: Iterable[int]) -> None:
    """Raise `BadInput` unless layers of these widths can be normalised in the model's way."""
    if model.norm == "group":
        for width in widths:
            needed = f"a divisor of every normalised width, here {width}"
            require(width % model.groups == 0, "groups", model.groups, needed)
