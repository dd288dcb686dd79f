"""The network of the image generators. Private, because importing it imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.2  # of the leaky ReLUs


class ConvolutionalGenerator(nn.Module):
    """Noise and labels become maps by one layer each, and the maps become images by convolutions.

    Args:
        noise, classes: length of the noise vector, number of labels.
        start: (channels, height, width) of the first maps. Noise and label make one half each.
        body: layers from these maps to those of the last convolution.
        width: channels of the last convolution's input.
        channels: of the images.
        final_norm: whether the images are normalised over the batch after the tanh.
    """

    def __init__(
        self,
        noise: int,
        classes: int,
        start: tuple[int, int, int],
        body: Sequence[nn.Module],
        width: int,
        channels: int,
        final_norm: bool,
    ) -> None:
        super().__init__()
        first, height, across = start
        half = first * height * across // 2
        self.of_noise = nn.Linear(noise, half)
        self.of_label = nn.Linear(classes, half)
        final = [nn.BatchNorm2d(channels, affine=False)] if final_norm else []
        self.maps = nn.Sequential(
            nn.Unflatten(1, start),
            nn.BatchNorm2d(first),
            *body,
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
            *final,
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        ones = functional.one_hot(labels, self.of_label.in_features).to(noise.dtype)
        images: Tensor = self.maps(torch.cat([self.of_noise(noise), self.of_label(ones)], 1))
        return images


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """[B, inputs, H, W] to [B, outputs, H, W]."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(_SLOPE)]


def doubling() -> nn.Module:
    """[B, C, H, W] to [B, C, 2 H, 2 W]; every pixel is repeated four times."""
    return nn.Upsample(scale_factor=2)
