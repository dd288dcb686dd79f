"""The parts of FeatureFusion (Yao et al., 2019). Private, because importing it imports torch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Fused(nn.Module):
    """A backbone with a fusion operator between its parts.

    Without another extractor it fuses its own features with themselves.
    """

    is_in_two_parts = True

    def __init__(self, extractor: nn.Module, fusion: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.fusion = fusion
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        features = self.extractor(x)
        logits: Tensor = self.classifier(self.fusion(features, features))
        return logits


class Blend(nn.Module):
    """share theirs + (1 - share) own, with a learned share that starts at zero.

    Args:
        channels: number of shares: one per channel, or one for all channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(channels))

    def forward(self, theirs: Tensor, own: Tensor) -> Tensor:
        """Features [B, C] or [B, C, H, W] of the global and of the local extractor -> the same shape."""
        share = self.share.view(-1, *[1] * (own.dim() - 2))
        return share * theirs + (1 - share) * own


class Mix(nn.Module):
    """A 1x1 convolution over the channels of both extractors (the global one's first).

    Args:
        start: initial weights. default: as PyTorch draws them. average: the mean of both extractors.
    """

    def __init__(self, channels: int, start: Literal["default", "average"]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2 * channels, channels, 1)
        if start == "average":
            half = torch.eye(channels) / 2
            with torch.no_grad():
                self.convolution.weight.copy_(torch.cat((half, half), 1)[:, :, None, None])
                nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, theirs: Tensor, own: Tensor) -> Tensor:
        """Features [B, C] or [B, C, H, W] of the global and of the local extractor -> the same shape."""
        both = torch.cat((theirs, own), 1)
        mixed: Tensor = self.convolution(both if both.dim() == 4 else both[:, :, None, None])
        return mixed.view(own.shape)
