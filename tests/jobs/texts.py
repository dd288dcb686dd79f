"""Texts for tests, used by import path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import Arrays, Dataset, Digits
from fedmpi.data.base import Progress
from fedmpi.tasks import LanguageModel


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


class NextPlace(Places):
    """The same texts, of which the next token is to be predicted at each place; after the last one nothing is."""

    task = LanguageModel()

    def read(self, progress: Progress) -> Arrays:
        read = super().read(progress)
        return Arrays(read.train_x, following(read.train_x), read.test_x, following(read.test_x))


def following(tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n, L] the next token at each place; -1 where there is none."""
    after = np.pad(tokens[:, 1:], ((0, 0), (0, 1))).astype(np.int64)
    after[after == 0] = -1
    return after
