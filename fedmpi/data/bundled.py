"""Small tables that scikit-learn contains, so that nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._features import standardised
from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.errors import BadInput
from fedmpi.tasks import Regression


class Diabetes(Dataset):
    """442 diabetes patients, 10 numbers each, and the progression of the disease after a year (Efron et al., 2004).

    Bundled with scikit-learn. Every fifth patient is a test sample (354 for training, 88 for tests), whatever the
    seed. Features and targets are standardised by the training samples: an rmse of 1 is that of always predicting
    their mean, and corresponds to 78.0 in the published targets.
    """

    task = Regression()

    def read(self, progress: Progress) -> Arrays:
        features = numbers_of(self, "diabetes_data_raw.csv.gz", 10, delimiter=None)
        targets = numbers_of(self, "diabetes_target.csv.gz", 1)
        is_test = np.arange(len(targets)) % 5 == 4
        x, y = _standardised(features, is_test), _standardised(targets, is_test)
        return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test])


class _Classified(Dataset):
    """A table of `features` columns of numbers and the class, after a line of other things."""

    file: ClassVar[str]
    features: ClassVar[int]

    def read(self, progress: Progress) -> Arrays:
        table = numbers_of(self, self.file, self.features + 1, skiprows=1)
        y = table[:, -1].astype(np.int64)
        is_test = every_fifth(y)
        x = _standardised(table[:, :-1], is_test)
        return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test])


class Wine(_Classified):
    """178 wines of 3 cultivars, with 13 numbers of a chemical analysis each (Aeberhard and Forina, 1991).

    Bundled with scikit-learn. Every fifth sample of each class is a test sample (144 for training, 34 for tests),
    whatever the seed. Features are standardised by the training samples.
    """

    file = "wine_data.csv"
    features = 13
    classes = 3


class BreastCancer(_Classified):
    """569 breast tumours, malignant (0) or benign (1), with 30 numbers of an image each (Wolberg et al., 1993).

    Bundled with scikit-learn. Every fifth sample of each class is a test sample (456 for training, 113 for tests),
    whatever the seed. Features are standardised by the training samples.
    """

    file = "breast_cancer.csv"
    features = 30
    classes = 2


def numbers_of(
    dataset: Dataset, file: str, columns: int, delimiter: str | None = ",", skiprows: int = 0
) -> NDArray[np.float64]:
    """[n, columns] the numbers of a file in scikit-learn's folder of data."""
    package = find_spec("sklearn")  # found, not imported: that would take a second
    if package is None or package.origin is None:
        name = type(dataset).__name__
        raise BadInput(f"data set {name}: scikit-learn, which contains it, is missing: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / file
    try:
        table = np.loadtxt(path, delimiter=delimiter, skiprows=skiprows, ndmin=2)
        if table.shape[1] != columns:
            raise ValueError(f"{table.shape[1]} columns, not {columns}")
        return table
    except (OSError, EOFError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}): reinstall scikit-learn") from error


def every_fifth(y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n] whether a sample is a test sample: every fifth one of each class."""
    is_test = np.zeros(len(y), bool)
    for label in np.unique(y):
        is_test[np.flatnonzero(y == label)[4::5]] = True
    return is_test


def _standardised(columns: NDArray[np.float64], is_test: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.column_stack([standardised(column, is_test).values for column in columns.T]).astype(np.float32)
