"""Batches of samples on the training device: gathered by index, seen as their client sees them, normalised."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.training.settings import Augmentation

CROP_PADDING = 4


@dataclass
class Batch:
    """Samples of one client.

    Attributes:
        x: [B, ...] float32 inputs (tokens: int64).
        y: [B] int64 labels.
        index: [B] int64, which samples of the data set these are; the same sample has the same index in every round.
        place: [B] int64, which of the client's training samples these are; None: they are not its training samples.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    place: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)


class Samples:
    """The training or the test set on a device.

    Args:
        x: [n, ...]; images as uint8 [n, C, H, W], in any memory order (gathering is fastest when every sample is
            contiguous, and the network fastest when its channels come last).
        y: [n] int64 labels.
        mean, std: per channel, on the scale 0..1; None leaves images at 0..1.
        device: where batches are made; the whole set is kept there.
    """

    def __init__(
        self,
        x: NDArray,
        y: NDArray[np.int64],
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        device: torch.device,
    ) -> None:
        self.images = x.ndim == 4
        # Memory order [n, H, W, C]: a gathered batch is then channels_last as it lies.
        stored = torch.from_numpy(x).movedim(1, -1) if self.images else torch.from_numpy(x)
        self.x = stored.contiguous().to(device)
        self.y = torch.from_numpy(y).to(device)
        self.device = device
        self._normalise(mean, std)

    def like(self, x: NDArray, y: NDArray[np.int64]) -> Samples:
        """Others, normalised as these are."""
        return Samples(x, y, self._mean, self._std, self.device)

    def unnormalised(self) -> Samples:
        """The same in the same memory, with images on the scale 0..1."""
        same = copy(self)
        same._normalise(None, None)
        return same

    def anew(self) -> Samples:
        """The same in the same memory, of whose images batches are of what is now PyTorch's default type."""
        same = copy(self)
        same._normalise(self._mean, self._std)
        return same

    def _normalise(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        self._mean, self._std = mean, std
        if self.x.dtype == torch.uint8:
            self._scale, self._shift = (part.to(self.device) for part in image_scale(mean, std))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, as networks take it."""
        *places, last = self.x.shape[1:]
        return (last, *places) if self.images else (*places, last)

    @property
    def is_text(self) -> bool:
        """Whether samples are tokens."""
        return not (self.images or self.x.is_floating_point())

    @property
    def pixels(self) -> int:
        """Places within a sample that a client may see in an order of its own: H * W of images, else all features."""
        places = self.x.shape[1:-1] if self.images else self.x.shape[1:]
        return places.numel()

    def batch(
        self,
        index: NDArray[np.int64],
        pixels: Tensor | None = None,
        augmentation: Augmentation = "none",
        bits: NDArray[np.uint64] | None = None,
    ) -> Batch:
        """The samples `index` [B].

        Args:
            pixels: [H * W] or [B, H * W], the order in which the client sees (each sample's) pixels.
            augmentation: what is done to the batch at random, as drawn by `bits` [B, 3].
        """
        where = torch.from_numpy(index).to(self.device)
        x = self.x.index_select(0, where)
        if pixels is not None:
            x = _permute(x, pixels)
        if augmentation != "none":
            assert bits is not None
            x = _augment(x, augmentation, torch.from_numpy((bits >> np.uint64(33)).astype(np.int64)).to(self.device))
        if x.dtype == torch.uint8:
            x = x.to(self._scale.dtype).mul_(self._scale).add_(self._shift)
        else:
            x = x.to(torch.get_default_dtype()) if x.is_floating_point() else x.long()
        return Batch(x.movedim(-1, 1) if self.images else x, self.y.index_select(0, where), where)


def image_scale(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
    """By what pixels 0..255 are multiplied, and what is added then, to be normalised: [C] each, or [1] for all alike.

    Args:
        mean, std: per channel, on the scale 0..1; None: 0 and 1.
    """
    channels = len(mean or std or (0.0,))
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    return torch.tensor([1 / (255 * s) for s in std]), torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])


def _permute(x: Tensor, pixels: Tensor) -> Tensor:
    flat = x.reshape(len(x), pixels.shape[-1], -1)
    order = pixels.expand(len(x), -1)[:, :, None].expand(flat.shape)
    return flat.gather(1, order).reshape(x.shape)


def _augment(x: Tensor, kind: Augmentation, draws: Tensor) -> Tensor:
    """Random crop out of a zero-padded image, and mirror, for a whole batch [B, H, W, C] by one gather."""
    batch, height, width, _ = x.shape
    columns = torch.arange(width, device=x.device).expand(batch, -1)
    columns = torch.where((draws[:, 2:] & 1) == 1, columns.flip(1), columns)
    rows = torch.arange(height, device=x.device).expand(batch, -1)
    if kind == "crop_flip":
        x = torch.nn.functional.pad(x, (0, 0, CROP_PADDING, CROP_PADDING, CROP_PADDING, CROP_PADDING))
        rows = rows + draws[:, :1] % (2 * CROP_PADDING + 1)
        columns = columns + draws[:, 1:2] % (2 * CROP_PADDING + 1)
    return x[torch.arange(batch, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
