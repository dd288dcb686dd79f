"""A part of another data set, for short experiments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import prepared
from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.data.digits import Digits
from fedmpi.errors import require
from fedmpi.options import null_for, with_options
from fedmpi.randomness import stream
from fedmpi.ranges import PositiveInt


@with_options
class Subset(Dataset):
    """A random part of another data set. The same samples are drawn for every seed.

    Args:
        over: the data set that is wrapped, from which samples are drawn; null: Digits.
        samples: number of training samples; null: all.
        test_samples: number of test samples; null: all.
    """

    over: Dataset = null_for(Digits)
    samples: PositiveInt | None = None
    test_samples: PositiveInt | None = None

    def __post_init__(self) -> None:
        self.task, self.mean, self.std = self.over.task, self.over.mean, self.over.std

    @property
    def classes(self) -> int:  # type: ignore[override]
        return self.over.classes

    @property
    def vocabulary(self) -> int | None:  # type: ignore[override]
        return self.over.vocabulary

    def read(self, progress: Progress) -> Arrays:
        whole = prepared.load(self.over, progress)
        train = _drawn("samples", self.samples, len(whole.train_y))
        test = _drawn("test_samples", self.test_samples, len(whole.test_y))
        users = [
            None if known is None else known[rows]
            for known, rows in ((whole.train_users, train), (whole.test_users, test))
        ]
        return Arrays(whole.train_x[train], whole.train_y[train], whole.test_x[test], whole.test_y[test], *users)


def _drawn(option: str, count: int | None, there: int) -> NDArray[np.int64]:
    """[count] random rows, in rising order."""
    require(count is None or count <= there, option, count, f"at most {there}, the number of samples of the data set")
    rows = stream(0, f"subset {option}").permutation(there)
    return np.sort(rows[:count])
