"""Real data for every task, from what scikit-learn brings along, and small networks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from fedmpi.data import Arrays, Dataset, Digits, Progress
from fedmpi.models import Model
from fedmpi.tasks import LanguageModel, MultiLabel, Regression, Segmentation
from tests.support.experiments import read

IGNORED = 255
LENGTH = 24


class Diabetes(Dataset):
    """Ten features of 442 patients; two targets: the disease's progression, and its square root."""

    task = Regression()

    def read(self, progress: Progress) -> Arrays:
        x, y = load_diabetes(return_X_y=True)
        y = np.column_stack([y / 100, np.sqrt(y) / 10])
        x, y = (20 * x).astype(np.float32), y.astype(np.float32)
        return Arrays(x[100:], y[100:], x[:100], y[:100])


class Attributes(Dataset):
    """Digits with four labels each: even, prime, at least five, has a closed loop."""

    task = MultiLabel()

    def read(self, progress: Progress) -> Arrays:
        digits = read(Digits())
        having = np.array([[n % 2 == 0, n in (2, 3, 5, 7), n >= 5, n in (0, 6, 8, 9)] for n in range(10)], np.uint8)
        return Arrays(digits.train_x, having[digits.train_y], digits.test_x, having[digits.test_y])


class Masks(Dataset):
    """Digits whose dark pixels have the class digit + 1, and others 0. The pixels in the corners are ignored."""

    task = Segmentation(ignore=IGNORED)
    classes = 11

    def read(self, progress: Progress) -> Arrays:
        digits = read(Digits())

        def masks(x: NDArray[np.uint8], y: NDArray[np.int64]) -> NDArray[np.int64]:
            mask = np.where(x[:, 0] > 100, y[:, None, None] + 1, 0)
            mask[:, :2, :2] = mask[:, -1:, -1:] = IGNORED
            mask[::7, 4:] = IGNORED  # so that samples have different weights
            return mask

        return Arrays(
            digits.train_x, masks(digits.train_x, digits.train_y), digits.test_x, masks(digits.test_x, digits.test_y)
        )


class CutMasks(Masks):
    """The same without the last row of each mask."""

    def read(self, progress: Progress) -> Arrays:
        arrays = super().read(progress)
        return replace(arrays, train_y=arrays.train_y[:, :-1], test_y=arrays.test_y[:, :-1])


class Characters(Dataset):
    """Next characters in scikit-learn's descriptions of its data sets; each description is a user."""

    task = LanguageModel()
    vocabulary = 97

    def read(self, progress: Progress) -> Arrays:
        x, y, users = [], [], []
        for number, file in enumerate(sorted((Path(sklearn.__file__).parent / "datasets/descr").glob("*.rst"))):
            text = file.read_text(encoding="utf-8").replace("\n", " ")
            codes = np.array([min(max(ord(letter) - 31, 1), 96) for letter in text[:2000]])
            for first in range(0, len(codes) - 1, LENGTH):
                seen, following = codes[first : first + LENGTH], codes[first + 1 : first + 1 + LENGTH]
                x.append(np.pad(seen, (0, LENGTH - len(seen))))
                y.append(np.pad(following, (0, LENGTH - len(following)), constant_values=-1))
                users.append(number)
        tokens, targets, owners = (np.array(each, np.int64) for each in (x, y, users))
        test = np.arange(len(tokens)) % 5 == 0
        return Arrays(tokens[~test], targets[~test], tokens[test], targets[test], owners[~test], owners[test])


class PerPixel(Model):
    """[B, C, H, W] -> [B, outputs, H, W]"""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, outputs, 5, padding=2))


class Bigrams(Model):
    """[B, L] -> [B, L, outputs], by the current token alone."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return Bigram(self.text(shape), outputs)


class Bigram(nn.Module):
    def __init__(self, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 12)
        self.head = nn.Linear(12, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.embedding(tokens)))


class Uniform(Model):
    """Logits that are zero whatever the input: every token is equally likely."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        network = Bigram(self.text(shape), outputs)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        return network
