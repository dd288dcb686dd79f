"""Texts for tests, used by import path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import Arrays, Dataset, Digits
from fedmpi.data.base import Progress


class Places(Dataset):
    """The digits as texts: the places of an image's brightest pixels, 1 to 64, the first 8 of them."""

    classes = Digits.classes
    vocabulary = 65

    def read(self, progress: Progress) -> Arrays:
        digits = Digits().read(progress)
        return Arrays(self.texts(digits.train_x), digits.train_y, self.texts(digits.test_x), digits.test_y)

    def texts(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """[n, 8], padded with 0."""
        pixels = images.reshape(len(images), -1)
        places = np.where(pixels == pixels.max(1, keepdims=True), np.arange(1, self.vocabulary), self.vocabulary)
        tokens = np.sort(places, axis=1)[:, :8].astype(np.int32)
        tokens[tokens == self.vocabulary] = 0
        return tokens
