"""The small data set that needs no download."""

from __future__ import annotations

import numpy as np

from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.data.bundled import every_fifth, numbers_of


class Digits(Dataset):
    """1,797 handwritten digits, 1x8x8, of UCI (Alpaydin and Kaynak, 1998), bundled with scikit-learn.

    Every fifth sample of each class is a test sample (1,442 for training, 355 for tests), whatever the seed.
    """

    classes = 10
    mean = (0.3052,)
    std = (0.3760,)

    def read(self, progress: Progress) -> Arrays:
        table = numbers_of(self, "digits.csv.gz", 65)
        y = table[:, 64].astype(np.int64)
        # Grey values are 0..16, of which 16 is white.
        x = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        is_test = every_fifth(y)
        return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test])
