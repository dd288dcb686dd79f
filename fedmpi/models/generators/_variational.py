"""The network of the conditional variational autoencoder. Private, because importing it imports torch."""

from __future__ import annotations

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """The network of an autoencoder. Calling it runs only the decoder; training calls both parts by their names.

    Args:
        encoder: images [B, C, H, W] to means and raw standard deviations, concatenated [B, 2 noise].
        decoder: noise [B, noise] and labels [B] to images.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.decoder(noise, labels)
        return images
