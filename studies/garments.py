"""Fashion-MNIST with several labels per image, for the multi-label run of `studies.tasks`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import Arrays, Dataset, FashionMNIST, Progress
from fedmpi.data.prepared import load
from fedmpi.options import with_options
from fedmpi.tasks import MultiLabel

#: Property -> the classes of Fashion-MNIST that have it.
PROPERTIES = {
    "worn on the upper body": (0, 2, 3, 4, 6),
    "has long sleeves": (2, 3, 4, 6),
    "can be open in front": (2, 4, 6),
    "worn on feet": (5, 7, 9),
    "closed shoe": (7, 9),
    "covers legs": (1, 3),
    "carried": (8,),
}


@with_options
class Garments(Dataset):
    """Fashion-MNIST with seven properties of the garments as labels, such as "has long sleeves".

    Args:
        root: folder that holds FashionMNIST.
    """

    root: Path = Path("data")

    task = MultiLabel()
    mean = FashionMNIST.mean
    std = FashionMNIST.std

    def read(self, progress: Progress) -> Arrays:
        read = load(FashionMNIST(self.root), progress)
        return Arrays(read.train_x, _properties(read.train_y), read.test_x, _properties(read.test_y))


def _properties(y: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[n, properties]"""
    return np.column_stack([np.isin(y, classes) for classes in PROPERTIES.values()]).astype(np.uint8)
