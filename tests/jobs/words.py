"""Text of many users, and the smallest model of text; used by import path."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from fedmpi.data import Arrays, Dataset, Progress
from fedmpi.models import Backbone, Model


class Words(Dataset):
    """Sequences of 6 of 20 tokens; the label is whether most of them are small or large.

    15 users have written 13 to 27 training sequences each, and, with three others, the test sequences.
    """

    classes = 2
    vocabulary: int | None = 20

    def read(self, progress: Progress) -> Arrays:
        rng = np.random.default_rng(4)
        x = rng.integers(0, 20, (400, 6)).astype(np.int32)
        y = ((x >= 10).sum(1) > 3).astype(np.int64)
        users = np.concatenate([np.repeat(np.arange(15), np.arange(13, 28))[:300], rng.integers(0, 18, 100)])
        return Arrays(x[:300], y[:300], x[300:], y[300:], users[:300], users[300:])


class Mean(nn.Module):
    """[B, L, width] to [B, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Bag(Model):
    """The mean of the tokens' embeddings, and a linear layer."""

    def build(self, shape: tuple[int, ...], classes: int) -> Backbone:
        assert self.vocabulary is not None
        return Backbone(nn.Sequential(nn.Embedding(self.vocabulary, 7), Mean()), nn.Linear(7, classes))
