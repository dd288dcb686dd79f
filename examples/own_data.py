"""A data set and a partition of your own: measurements of cells, and clients whose share of classes differs.

    python -m fedmpi --dataset examples.own_data.Cells --partition examples.own_data.ByClass --model MLP \\
        --clients 8 --cohort 8 --rounds 10 --output runs/cells.h5
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import Arrays, Dataset, Partition, Progress
from fedmpi.options import with_options
from fedmpi.ranges import Probability


class Cells(Dataset):
    """The Wisconsin breast cancer data (Street et al., 1993), 569 tumours, which scikit-learn carries.

    Thirty numbers describe each tumour; the classes are malignant and benign.
    """

    classes = 2

    def read(self, progress: Progress) -> Arrays:
        """All samples: every fifth one is for testing."""
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
        is_test = np.arange(len(y)) % 5 == 0
        return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test])


@with_options
class ByClass(Partition):
    """Equally many samples per client, sorted by class, but for a random share.

    Args:
        mixed: share of the samples that are spread at random; 1 is IID.
    """

    mixed: Probability = 0.3

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """For each client, the numbers of its training samples."""
        rank = labels + rng.uniform(0, 0.5, len(labels))
        drawn = rng.random(len(labels)) < self.mixed
        rank[drawn] = rng.uniform(0, 1.5, drawn.sum())
        return [np.sort(part) for part in np.array_split(np.argsort(rank), clients)]
