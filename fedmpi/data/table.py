"""Your own tables: files of columns, with one row per sample."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._features import categories, one_hot, standardised
from fedmpi.data._parts import COMPLETE, is_test_row
from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.data.prepared import visible
from fedmpi.errors import BadInput, named, require
from fedmpi.options import null_for, shown, with_options
from fedmpi.ranges import interval
from fedmpi.tasks import Classification, MultiLabel, Regression, Task
from fedmpi.typing import Frame

SUFFIXES = (".csv", ".parquet")
#: With fewer rows per class than this on average, a column has measured numbers or names, and no classes.
FEWEST_PER_CLASS = 3
#: So many categories are always accepted; more only if there are two training samples of each on average.
FEW_CATEGORIES = 20
LARGEST = np.finfo(np.float32).max
TOO_LARGE = "numbers that are infinite, or too large for float32"


@with_options
class Table(Dataset):
    """Your own table: a CSV or Parquet file with a row per sample, or a folder with such a file for each user.

    All columns that no option names are features. Numbers are standardised. Texts, and true and false, are one-hot: a
    column for each category of the training samples, in sorted order. A category that only test samples have is zero
    in all of these columns. Class values are numbered from 0 in sorted order. The first line of a CSV file has the
    names of the columns. Fields are separated by commas, semicolons, tabs or bars.

    Needs pyarrow: pip install 'fedmpi[tables]'. Each job reads the files; no arrays are prepared on disk.

    Args:
        path: file named .csv or .parquet, or folder of such files, each of which is a user.
        target: column of the targets; a list of columns for Regression with several outputs, and for MultiLabel.
        task: Classification, Regression or MultiLabel (columns of 0 and 1); null: Classification.
        user: column with the user (or device) of each sample, for the partition Users; null: unknown. Users are
            distinguished by the text of the column: 7 and 07 are two users.
        split: column that says train or test; null: test samples are drawn, the same ones for every seed.
        test_share: share of test samples, for Classification in each class, if no column says which they are.
        standardise: which numbers are standardised by the training samples of all clients. all: features, and the
            targets of Regression. features: not the targets.
        missing: what is done with missing values of features. fill: missing numbers become the mean of the training
            samples, and missing texts are a category.
        drop: columns that are not used.
    """

    path: Path = Path("data/table.csv")
    target: tuple[str, ...] | str = "target"
    task: Task = null_for(Classification)
    user: str | None = None
    split: str | None = None
    test_share: Annotated[float, interval("(0, 1)")] = 0.2
    standardise: Literal["all", "features", "none"] = "all"
    missing: Literal["refuse", "fill"] = "refuse"
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._targets = (self.target,) if isinstance(self.target, str) else self.target
        known = isinstance(self.task, (Classification, MultiLabel, Regression))
        require(known, "task", named(self.task), "Classification, Regression or MultiLabel")
        require(len(self._targets) > 0, "target", "[]", "one or more columns")
        if isinstance(self.task, Classification):
            require(len(self._targets) == 1, "target", list(self._targets), "one column for Classification")
        used = [name for _, name in self._named()]
        for option, name in self._named():
            require(used.count(name) == 1, option, name, "a column that no other option names")

    def _named(self) -> Iterator[tuple[str, str]]:
        """Each option that names a column, and the column."""
        yield from (("target", name) for name in self._targets)
        yield from ((option, name) for option in ("user", "split") if (name := getattr(self, option)) is not None)
        yield from (("drop", name) for name in self.drop)

    @cached_property
    def classes(self) -> int:  # type: ignore[override]
        """The number of class values; 0: the task has no classes.

        `read` sets it. Ranks that do not call `read` only read the column of the target.
        """
        return len(self._labels(self._frame(self._targets))[0]) if self.task.has_classes else 0

    def sources(self) -> list[Path]:
        endings = " or ".join(SUFFIXES)
        require(self.path.exists(), "path", self.path, "an existing file or folder")
        if not self.path.is_dir():
            allowed = f"a file named {endings}, or a folder of such files"
            require(self.path.suffix.lower() in SUFFIXES, "path", self.path, allowed)
            return [self.path]
        files = [Path(entry.path) for entry in visible(self.path)]
        files = [file for file in files if file.suffix.lower() in SUFFIXES]
        require(len(files) > 0, "path", self.path, f"a folder with files named {endings}")
        stems = [file.stem for file in files]
        require(len({*stems}) == len(stems), "path", self.path, "a folder with one file per user")
        return files

    def read(self, progress: Progress) -> Arrays:
        frame = self._frame()
        y, is_test = self._y_and_tests(frame, progress)
        users = self._users(frame)
        others = [name for _, name in self._named()]
        features = {name: self._feature(frame, name, is_test) for name in frame.names if name not in others}
        if not features:
            raise BadInput(f"{self.path} has no features: options name all of its columns")
        if constant := [name for name, x in features.items() if (np.ptp(x[~is_test], axis=0) == 0).all()]:
            progress(f"Table: constant in the training samples: {shown(', '.join(constant))}")
        x = np.concatenate([*features.values()], axis=1, dtype=np.float32)
        progress(f"Table: number of features: {x.shape[1]}, from {len(features)} column{'s' * (len(features) > 1)}")
        of_users = [None if users is None else users[rows] for rows in (~is_test, is_test)]
        return Arrays(x[~is_test], y[~is_test], x[is_test], y[is_test], *of_users)

    def _frame(self, wanted: Collection[str] | None = None) -> Frame:
        """The rows of the files.

        Args:
            wanted: the names of the columns that are read; None: all.
        """
        try:
            from fedmpi.data._frames import read
        except ImportError as error:
            reason = f"data set Table needs pyarrow ({error}): pip install 'fedmpi[tables]'"
            raise BadInput(reason) from error
        frame = read(self.path, self.sources(), wanted, as_written=[self.user] if self.user else [])
        for option, name in self._named():
            if name not in frame.names:
                raise frame.unknown(name, option)
        return frame

    def _y_and_tests(self, frame: Frame, progress: Progress) -> tuple[NDArray, NDArray[np.bool_]]:
        """The targets, and [n] whether a sample is a test sample."""
        if isinstance(self.task, Classification):
            classes, labels = self._labels(frame)
            self.classes = len(classes)
            numbered = ", ".join(f"{number} = {name}" for number, name in enumerate(classes[:FEW_CATEGORIES]))
            progress(f"Table: classes of {self.target}: {numbered}{', ...' * (len(classes) > FEW_CATEGORIES)}")
            return labels, is_test_row(frame, self.split, self.test_share, labels)
        is_test = is_test_row(frame, self.split, self.test_share, np.zeros(len(frame), np.int64))
        if isinstance(self.task, MultiLabel):
            return np.column_stack([self._zeros_and_ones(frame, name) for name in self._targets]), is_test
        columns = [self._numbers(frame, name) for name in self._targets]
        if self.standardise == "all":
            for place, name in enumerate(self._targets):
                columns[place], mean, std = standardised(columns[place], is_test)
                progress(f"Table: {name} is standardised: (value - {mean:.6g}) / {std:.6g}")
        return np.column_stack(columns).astype(np.float32), is_test

    def _labels(self, frame: Frame) -> tuple[list[str], NDArray[np.int64]]:
        """The sorted class values as texts, and [n] the number of each sample's class."""
        (name,) = self._targets
        values = frame.classes(name, COMPLETE, "set --dataset.task Regression, or choose a column of classes")
        classes, labels = np.unique(values, return_inverse=True)
        if len(classes) * FEWEST_PER_CLASS > len(labels):
            remedy = "set --dataset.task Regression" if frame.is_numeric(name) else "choose a column of classes"
            found = f"{len(classes)} different values in {len(labels)} rows, too many for classes"
            raise BadInput(f"= {name}: has {found}; {remedy}", "target")
        if len(classes) == 1:
            raise BadInput(f"= {name}: has only one value, {shown(classes[0])}: choose a column of classes", "target")
        return [str(each) for each in classes], labels.astype(np.int64)

    def _numbers(self, frame: Frame, name: str) -> NDArray[np.float64]:
        """[n] a target of Regression."""
        values = frame.without_gaps(name, COMPLETE)
        if not frame.is_numeric(name):
            raise BadInput(f"= {name}: has texts such as {shown(values[0])}, but Regression needs numbers", "target")
        if np.abs(values).max() > LARGEST:
            raise BadInput(f"= {name}: has {TOO_LARGE}", "target")
        return values

    def _zeros_and_ones(self, frame: Frame, name: str) -> NDArray[np.uint8]:
        """[n] a label of MultiLabel."""
        values = frame.without_gaps(name, COMPLETE)
        zero, one = (0, 1) if frame.is_numeric(name) else ("false", "true")
        if (others := values[(values != zero) & (values != one)]).size:
            raise BadInput(f"= {name}: has {shown(others[0])}, but MultiLabel needs 0 and 1", "target")
        return (values == one).astype(np.uint8)

    def _users(self, frame: Frame) -> NDArray[np.int64] | None:
        """[n] the number of each sample's user."""
        if self.path.is_dir():
            require(self.user is None, "user", self.user, "null, because each file of the folder is a user")
            return np.repeat(np.arange(len(frame.files)), frame.rows)
        if self.user is None:
            return None
        return frame.users(self.user, COMPLETE)

    def _feature(self, frame: Frame, name: str, is_test: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[n, width] the features of a column."""
        if self.missing == "refuse":
            values = frame.without_gaps(name, "fill them in, or set --dataset.missing fill")
        else:
            values = frame.values(name)
        is_train = ~is_test
        if not frame.is_numeric(name):
            known = categories(values, is_test)
            if len(known) > max(FEW_CATEGORIES, is_train.sum() / 2):
                found = f"{len(known)} different texts in {is_train.sum()} training samples"
                remedy = f"make numbers of texts such as {shown(known[0])}, or add --dataset.drop [{name}]"
                raise frame.refused(name, f"has {found}: {remedy}")
            return one_hot(values, known)
        is_known = ~np.isnan(values)
        if (np.abs(values[is_known]) > LARGEST).any():
            raise frame.refused(name, f"has {TOO_LARGE}: replace them")
        if not is_known[is_train].any():
            raise frame.refused(name, f"has no value in the training samples: add --dataset.drop [{name}]")
        numbers = np.where(is_known, values, values[is_train & is_known].mean())
        return (numbers if self.standardise == "none" else standardised(numbers, is_test).values)[:, None]
