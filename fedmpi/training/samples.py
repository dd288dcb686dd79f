"""Batches of samples on the training device: gathered by index, with the client's order of pixels, normalised."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.training.settings import Augmentation

CROP_PADDING = 4
WHITE = 255


@dataclass
class Batch:
    """Samples of one client.

    Attributes:
        x: [B, ...] float32 inputs (tokens: int64).
        y: [B, ...] targets; for classification int64 labels.
        index: [B] int64, the samples' numbers in the data set, which are the same in every round.
        place: [B] int64, the samples' numbers among the client's training samples; None: they are not training
            samples.
        weight: [B], the weight of each sample's loss in the batch's mean; None: all count alike.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    place: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def real(self) -> Tensor:
        """[B]: 1 for samples, and 0 for padding, of which there is some only where clients are trained together."""
        return torch.ones(len(self), device=self.y.device)

    def shares(self, losses: Tensor, of: Batch) -> Tensor:
        """[B] the share of each of the losses [B] in the mean over a batch `of` which this is a part."""
        if self.weight is None or of.weight is None:
            return torch.full_like(losses, 1 / max(len(of), 1))
        return (self.weight / divisor(of.weight.sum())).to(losses.dtype)

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of this number of samples in their order; the last one may be smaller."""
        for first in range(0, len(self), size):
            some = slice(first, first + size)
            place, weight = (None if each is None else each[some] for each in (self.place, self.weight))
            yield Batch(self.x[some], self.y[some], self.index[some], place, weight)

    @property
    def mass(self) -> float:
        """The sum of the samples' weights."""
        return len(self) if self.weight is None else self.weight.sum().item()

    def total(self, losses: Tensor) -> float:
        """The weighted sum of losses [B] of the samples."""
        return (losses if self.weight is None else losses * self.weight).sum().item()


def divisor(mass: Tensor) -> Tensor:
    """What a weighted sum is divided by to give a mean: the sum of the weights, or 1 if all weights are 0."""
    return torch.where(mass > 0, mass, 1)


class Samples:
    """The training or the test set on a device.

    Args:
        x: [n, ...]; images as uint8 [n, C, H, W], in any memory order. Gathering is fastest if every sample is
            contiguous, and the network is fastest if channels come last.
        y: [n, ...] targets; for classification int64 labels.
        mean, std: per channel, on the scale 0..1; None: images stay on the scale 0..1.
        device: of the batches. The whole data set is kept there.
        weights: [n] of the samples' losses, see `Task.weights`; None: all count alike.
    """

    def __init__(
        self,
        x: NDArray,
        y: NDArray,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        device: torch.device,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        self.images = x.ndim == 4
        # Memory order [n, H, W, C]: a gathered batch is then channels_last as it lies.
        stored = torch.from_numpy(x).movedim(1, -1) if self.images else torch.from_numpy(x)
        self.x = stored.contiguous().to(device)
        self.y = torch.from_numpy(y).to(device)
        self._weights = None if weights is None else torch.from_numpy(weights).to(device)
        self._marked: Tensor | None = None
        self._square = 0
        self.device = device
        self._normalise(mean, std)

    def like(self, x: NDArray, y: NDArray[np.int64]) -> Samples:
        """Other samples, normalised in the same way."""
        return Samples(x, y, self._mean, self._std, self.device)

    def relabelled(self, y: NDArray) -> Samples:
        """The same samples in the same memory, with other targets [n, ...]."""
        same = copy(self)
        same.y = torch.from_numpy(y).to(self.device)
        return same

    def marked(self, size: int, which: NDArray[np.bool_]) -> Samples:
        """The same images in the same memory, those of `which` [n] with a white square in the lower right corner.

        Args:
            size: side of the square, in pixels of the stored images: before the client's order and augmentation.
        """
        same = copy(self)
        same._marked, same._square = torch.from_numpy(which).to(self.device), size
        return same

    def unnormalised(self) -> Samples:
        """The same samples in the same memory, with images on the scale 0..1."""
        same = copy(self)
        same._normalise(None, None)
        return same

    def anew(self) -> Samples:
        """The same samples in the same memory; batches of images have PyTorch's current default type."""
        same = copy(self)
        same._normalise(self._mean, self._std)
        return same

    def _normalise(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        self._mean, self._std = mean, std
        if self.x.dtype == torch.uint8:
            self._scale, self._shift = (part.to(self.device) for part in image_scale(mean, std))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample, as networks take it."""
        *places, last = self.x.shape[1:]
        return (last, *places) if self.images else (*places, last)

    @property
    def is_text(self) -> bool:
        """Whether samples are tokens."""
        return not (self.images or self.x.is_floating_point())

    @property
    def pixels(self) -> int:
        """Number of positions that a client may see in another order: H * W for images, else all features."""
        places = self.x.shape[1:-1] if self.images else self.x.shape[1:]
        return places.numel()

    def mass(self, index: NDArray[np.int64]) -> float:
        """The sum of the weights of the samples `index`."""
        return len(index) if self._weights is None else self._weights[_tensor(index)].sum().item()

    def batch(
        self,
        index: NDArray[np.int64] | Tensor,
        pixels: Tensor | None = None,
        augmentation: Augmentation = "none",
        draws: Tensor | None = None,
    ) -> Batch:
        """The samples `index` [B].

        Args:
            index: a tensor must be on the samples' device.
            pixels: [H * W] or [B, H * W], the order in which the client sees (each sample's) pixels.
            augmentation: augmentation of the batch, with the random numbers `draws` [B, 3] (`augmentation_draws`).
        """
        (where,) = (index,) if isinstance(index, Tensor) else upload(self.device, index)
        x = self.x.index_select(0, where)
        if self._marked is not None:
            corner = x[:, -self._square :, -self._square :]
            corner.masked_fill_(self._marked.index_select(0, where)[:, None, None, None], WHITE)
        if pixels is not None:
            x = _permute(x, pixels)
        if augmentation != "none":
            assert draws is not None
            x = _augment(x, augmentation, draws)
        if x.dtype == torch.uint8:
            x = x.to(self._scale.dtype).mul_(self._scale).add_(self._shift)
        else:
            x = x.to(torch.get_default_dtype()) if x.is_floating_point() else x.long()
        weight = None if self._weights is None else self._weights.index_select(0, where)
        return Batch(x.movedim(-1, 1) if self.images else x, self.y.index_select(0, where), where, weight=weight)


def upload(device: torch.device, *arrays: NDArray[np.int64]) -> list[Tensor]:
    """Arrays on a device. They are copied together, from pinned memory, so that the host does not wait.

    On the CPU they are not copied, unless they are read-only.
    """
    if device.type == "cpu":
        return list(map(_tensor, arrays))
    together = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays])).pin_memory()
    parts = together.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _tensor(array: NDArray[np.int64]) -> Tensor:
    """The array without a copy; PyTorch warns of arrays that are read-only, so these are copied."""
    return torch.from_numpy(np.require(array, requirements="W"))


def augmentation_draws(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[..., 3] the random numbers of augmentation, from random bits."""
    return (bits >> np.uint64(33)).astype(np.int64)


def image_scale(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
    """Factor and offset that normalise pixels 0..255: [C] each, or [1] for all channels.

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
    """Random crops of zero-padded images, and random mirroring, for a batch [B, H, W, C] by one gather."""
    batch, height, width, _ = x.shape
    columns = torch.arange(width, device=x.device).expand(batch, -1)
    columns = torch.where((draws[:, 2:] & 1) == 1, columns.flip(1), columns)
    rows = torch.arange(height, device=x.device).expand(batch, -1)
    if kind == "crop_flip":
        x = torch.nn.functional.pad(x, (0, 0, CROP_PADDING, CROP_PADDING, CROP_PADDING, CROP_PADDING))
        rows = rows + draws[:, :1] % (2 * CROP_PADDING + 1)
        columns = columns + draws[:, 1:2] % (2 * CROP_PADDING + 1)
    return x[torch.arange(batch, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
