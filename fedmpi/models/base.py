"""The interface of models: options, and a method that builds the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, Protocol

from fedmpi.errors import BadInput, named, require
from fedmpi.lazy import nn, torch
from fedmpi.options import Configured, with_options
from fedmpi.ranges import PositiveInt

Norm = Literal["batch", "group", "layer", "none"]
Trained = Literal["all", "head", "norm", "bias"]


class Architecture(metaclass=Configured):
    """What builds a network, by its options. Models derive from `Model`.

    Attributes:
        vocabulary: number of different tokens of the inputs, set by the experiment; None: the inputs are not text.
        drawn: names of the tensors that a file of weights did not fit, set by `make`.
    """

    vocabulary: int | None = None
    drawn: Sequence[str] = ()

    @abstractmethod
    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised float32 network, from inputs [B, *shape] to raw logits [B, outputs].

        Random numbers come from the global generators of torch, numpy.random or random, which the caller seeds. The
        network must be the same on every rank, and each time it is built. Parameters with `requires_grad` False are
        frozen for the whole run.
        """

    def image(self, shape: tuple[int, ...], at_least: int = 1) -> tuple[int, int, int]:
        """`shape` as (channels, height, width), or `BadInput` if it is not an image, or too small."""
        match shape:
            case (channels, height, width) if min(height, width) >= at_least:
                return channels, height, width
        raise BadInput(
            f"{type(self).__name__} cannot take inputs of shape {shape}: "
            f"it needs images (channels, height, width) of at least {at_least}x{at_least}"
        )

    def text(self, shape: tuple[int, ...]) -> int:
        """Number of different tokens, or `BadInput` if inputs of this `shape` are not texts."""
        if len(shape) == 1 and self.vocabulary is not None:
            return self.vocabulary
        raise BadInput(
            f"{type(self).__name__} cannot take inputs of shape {shape}: "
            "it needs texts (tokens,) from a data set with a vocabulary"
        )


@with_options
class Model(Architecture):
    """A family of networks, described by its options.

    The network can be any `nn.Module`. A `Backbone` also gives access to the features before its classifier, which
    some algorithms need. A model of your own, used with `--model my_module.Small --model.maps 32`:

        from torch import nn
        from fedmpi.models import Backbone, Model
        from fedmpi.options import with_options
        from fedmpi.ranges import PositiveInt

        @with_options
        class Small(Model):
            maps: PositiveInt = 16

            def build(self, shape: tuple[int, ...], outputs: int) -> Backbone:
                channels, height, width = self.image(shape)
                extractor = nn.Sequential(nn.Conv2d(channels, self.maps, 3, padding=1), nn.ReLU())
                classifier = nn.Sequential(nn.Flatten(), nn.Linear(self.maps * height * width, outputs))
                return Backbone(extractor, classifier)

    If several clients are trained in one batched call (`torch.func.vmap`), control flow must not depend on values.
    The models of this package import torch inside `build` only, so that the command line's --help is fast.

    Args:
        weights: file with weights that the network starts from: safetensors, or a state dict that torch.save has
            written. Names and shapes must be the network's. If the last fully connected layer has another number of
            outputs in the file, this layer starts from random weights. null: all weights are drawn, or those of the
            model's own source.
        train: the part that is trained; all else is frozen. all: everything. head: the last fully connected layer.
            norm: normalisation layers, and the head. bias: biases, and the head. null: as the model itself says,
            which usually is everything.
    """

    weights: Path | None = field(default=None, kw_only=True)
    train: Trained | None = field(default=None, kw_only=True)

    def published(self) -> str | None:
        """The name, in torchvision.models, of the network whose tensors are the same in the same order; None: none.

        Its files of weights are then taken, too, although the tensors have other names.
        """
        return None

    def make(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network of `build`, with the weights of the file, and with what is not trained frozen.

        Raises:
            BadInput: `build` returned no network, or the options do not fit it.
        """
        from fedmpi.models import _pretrained
        from fedmpi.training.dry_run import find_head, materialise

        network = self.build(shape, outputs)
        if not isinstance(network, nn.Module):
            found = type(network).__name__
            raise BadInput(f"= {named(self)}: build() returned a {found}, which must be a torch.nn.Module", "--model")
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in network.modules()):
            reason = "build() returned TorchScript, which must be the torch.nn.Module that it was made from"
            raise BadInput(f"= {named(self)}: {reason}", "--model")
        is_text = self.vocabulary is not None
        example = torch.ones(2, *shape, dtype=torch.int64 if is_text else torch.float32)
        try:
            materialise(network, example)
        except BadInput as error:
            raise BadInput(f"= {type(self).__name__}: {error.message}", "--model") from None
        find_head(network, example)
        if self.weights:
            self.drawn = _pretrained.load(network, self.weights, self.published())
        if self.train:
            _pretrained.freeze(network, self.train, named(self))
        return network


class Normalised(Protocol):
    """A model whose kind of normalisation is an option."""

    norm: Norm
    groups: PositiveInt


def require_groups(model: Normalised, widths: Iterable[int]) -> None:
    """Raise `BadInput` unless layers of these widths can be normalised as the options say."""
    if model.norm == "group":
        for width in widths:
            needed = f"a divisor of every normalised width, here {width}"
            require(width % model.groups == 0, "groups", model.groups, needed)
