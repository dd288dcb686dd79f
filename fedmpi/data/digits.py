"""The small data set that needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.errors import BadInput


class Digits(Dataset):
    """1,797 handwritten digits, 1x8x8, of UCI (Alpaydin and Kaynak, 1998), bundled with scikit-learn.

    Every fifth sample of each class is a test sample (1,442 for training, 355 for tests), whatever the seed.
    """

    classes = 10
    mean = (0.3052,)
    std = (0.3760,)

    def read(self, progress: Progress) -> Arrays:
        path = _file()
        try:
            table = np.loadtxt(path, delimiter=",", dtype=np.int64)
            y = np.ascontiguousarray(table[:, 64])
            # Grey values are 0..16, of which 16 is white.
            x = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise BadInput(f"{path} cannot be read ({error}): reinstall scikit-learn") from error
        test = np.zeros(len(y), bool)
        for label in range(self.classes):
            test[np.flatnonzero(y == label)[4::5]] = True
        return Arrays(x[~test], y[~test], x[test], y[test])


def _file() -> Path:
    package = find_spec("sklearn")  # found, not imported: that would take a second
    if package is None or package.origin is None:
        raise BadInput("data set Digits: scikit-learn, which contains it, is missing: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
