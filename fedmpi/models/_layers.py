"""The parts that networks are made of. Private, because importing it imports torch."""

from __future__ import annotations

from torch import Tensor, nn

from fedmpi.models.base import Norm


class Backbone(nn.Module):
    """A network in two parts, classifier(extractor(x)), for algorithms that look at the features in between.

    Features are maps [B, C, H, W] where the classifier begins with a flatten (plain convolutional networks),
    and vectors [B, features] elsewhere. The classifier gives raw logits [B, classes].
    """

    def __init__(self, extractor: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.extractor(x))
        return logits


class ResidualBlock(nn.Module):
    """The basic block of He et al. (2016): [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm_layer(norm, outputs, groups),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm_layer(norm, outputs, groups),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm_layer(norm, outputs, groups)
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.residual(x) + self.shortcut(x))


def norm_layer(norm: Norm, width: int, groups: int, of_maps: bool = True) -> nn.Module:
    """The layer that normalises feature maps [B, width, H, W], or feature vectors [B, width].

    "layer" is GroupNorm with one group: LayerNorm over (C, H, W), but scaled and shifted by channel, not by
    element. So the three kinds have the same parameters, and only batch norm has buffers.
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
    """Dropout; at probability 0 the identity, as `nn.Dropout` would ask for random numbers nevertheless."""
    return nn.Dropout(probability) if probability else nn.Identity()
