"""Building blocks of networks. Private, because importing it imports torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fedmpi.models.base import Norm
from fedmpi.training.layout import is_composed


class Backbone(nn.Module):
    """A network in two parts, classifier(extractor(x)), for algorithms that look at the features in between.

    For one output per sample, features are maps [B, C, H, W] if the classifier begins with a flatten layer, else
    vectors [B, features]. The classifier gives the network's output: raw logits [B, classes] for classification.
    """

    def __init__(self, extractor: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.extractor(x))
        return logits

    @property
    def is_in_two_parts(self) -> bool:
        """Whether it is classifier(extractor(x)) and nothing else; a subclass may have a `forward` of its own."""
        return is_composed(self, Backbone)


def before_last_layer(network: nn.Module) -> Backbone | None:
    """The same network, whose features are the inputs of its last fully connected layer.

    No weight is drawn, and the order of the tensors stays the same.

    Returns: None if the network does not end in such a layer.
    """
    before, last = without_last(network)
    if not isinstance(last, nn.Linear):
        return None
    return Backbone(before[0] if len(before) == 1 else nn.Sequential(*before), last)


def without_last(network: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """The layers before the last one of a sequence of layers or a `Backbone`, and the last layer."""
    if isinstance(network, Backbone) and network.is_in_two_parts:
        parts = [network.extractor, network.classifier]
    elif isinstance(network, nn.Sequential) and is_composed(network, nn.Sequential) and len(network):
        parts = list(network)
    else:
        return [], network
    *before, end = parts
    inner, last = without_last(end)
    return [*before, *inner], last


class Residual(nn.Module):
    """residual(x) + shortcut(x); the shortcut is the identity unless it has to change the shape."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total


class ResidualBlock(Residual):
    """The basic block of He et al. (2016): [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, groups: int) -> None:
        convolution = partial(normalised_convolution, norm, groups)
        residual = nn.Sequential(
            *convolution(inputs, outputs, 3, stride), nn.ReLU(), *convolution(outputs, outputs, 3)
        )
        changes = stride != 1 or inputs != outputs
        super().__init__(residual, nn.Sequential(*convolution(inputs, outputs, 1, stride)) if changes else None)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(x))


class DenseLayer(nn.Module):
    """The input and a layer's output, concatenated along the channels (Huang et al., 2017)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], 1)


class Padded(nn.Module):
    """A layer of maps [B, C, H, W] whose sides must be multiples of `side`.

    Other maps are padded with zeros at the bottom and on the right, and the result is cropped.
    """

    def __init__(self, layer: nn.Module, side: int) -> None:
        super().__init__()
        self.layer = layer
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        whole: Tensor = self.layer(nn.functional.pad(x, (0, -width % self.side, 0, -height % self.side)))
        return whole[..., :height, :width]


class PerPixel(nn.Module):
    """A layer of vectors [..., C], applied to each pixel of maps [B, C, H, W]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.movedim(1, -1))
        return y.movedim(-1, 1)


class SqueezeExcitation(nn.Module):
    """Maps [B, width, H, W], each scaled by a number from 0 to 1 computed from all maps' means (Hu et al., 2018)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, width, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.scale(x)[:, :, None, None]
        return scaled


def normalised_convolution(
    norm: Norm, groups: int, inputs: int, outputs: int, kernel: int, stride: int = 1, depthwise: bool = False
) -> tuple[nn.Module, nn.Module]:
    """A convolution [B, inputs, H, W] to [B, outputs, H / stride, W / stride] without bias, and its normalisation.

    A depthwise convolution filters each channel separately.
    """
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=inputs if depthwise else 1, bias=False
    )
    return convolution, norm_layer(norm, outputs, groups)


def norm_layer(norm: Norm, width: int, groups: int, of_maps: bool = True) -> nn.Module:
    """The layer that normalises feature maps [B, width, H, W], or feature vectors [B, width].

    "layer" is GroupNorm with one group: LayerNorm over (C, H, W), but with one scale and shift per channel instead of
    one per element. So the three kinds have the same parameters, and only batch norm has buffers.
    """
    match norm:
        case "batch":
            return nn.BatchNorm2d(width) if of_maps else nn.BatchNorm1d(width)
        case "group":
            return nn.GroupNorm(groups, width)
        case "layer":
            return nn.GroupNorm(1, width)
        case "none":
            return nn.Identity()


def dropout_layer(probability: float) -> nn.Module:
    """Dropout. With probability 0 it is the identity, because `nn.Dropout` would still draw random numbers."""
    return nn.Dropout(probability) if probability else nn.Identity()


def start_from_kaiming_normal(module: nn.Module) -> None:
    """Set convolutions as He et al. (2015) do for ReLU: Kaiming normal of fan-out, biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
