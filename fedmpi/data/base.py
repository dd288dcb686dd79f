"""The interface of data sets: a few arrays, and where they come from."""

from __future__ import annotations

import hashlib
import io
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.arrays import read_only
from fedmpi.errors import BadInput
from fedmpi.options import Configured
from fedmpi.tasks import Classification, Task

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Arrays:
    """A data set in memory, or mapped into memory from prepared files.

    Attributes:
        train_x: images uint8 [n, C, H, W], features float32 [n, ...], or tokens int32 or int64 [n, L]. The
            channels of images come last in memory in what `prepared` returns.
        train_y: [n, ...], targets as the task says; for `Classification` int64 [n], labels 0 .. classes - 1.
        test_x: like `train_x`.
        test_y: like `train_y`.
        train_users: int64 [n], numbers from 0 of the people (or devices) that the samples come from; None: unknown.
        test_users: likewise; the same number is the same user as in `train_users`.
        on_disk: whether the arrays are mapped from prepared files, which other processes can open as well.
        recorded: array name -> SHA-256 of the array as an .npy file, where that is known without reading the array.
        remarks: lines about the samples that each run prints at its start, such as how many were cut.
    """

    train_x: NDArray
    train_y: NDArray
    test_x: NDArray
    test_y: NDArray
    train_users: NDArray[np.int64] | None = None
    test_users: NDArray[np.int64] | None = None
    on_disk: bool = field(default=False, kw_only=True)
    recorded: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    remarks: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def checksum(self) -> str:
        """SHA-256, in hexadecimal, of the names, types, shapes and bytes of all arrays.

        The same content has the same checksum, prepared or not. For prepared arrays it is computed from the checksums
        in the manifest, without reading the arrays.
        """
        known = {name: self.recorded.get(name) or npy_sha256(x) for name, x in self.stored().items()}
        return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in known.items()).encode()).hexdigest()

    def stored(self) -> dict[str, NDArray]:
        """The existing arrays by name, as they are stored in memory, on disk and in shared memory."""
        return {name: as_stored(x) for name, x in vars(self).items() if isinstance(x, np.ndarray)}

    @classmethod
    def of_stored(
        cls,
        stored: Mapping[str, NDArray],
        on_disk: bool = False,
        recorded: Mapping[str, str] | None = None,
        remarks: Iterable[str] = (),
    ) -> Arrays:
        """The inverse of `stored`, without a copy."""
        seen = {name: as_seen(x) for name, x in stored.items()}
        return cls(**seen, on_disk=on_disk, recorded=recorded or {}, remarks=tuple(remarks))


class Dataset(metaclass=Configured):
    """Where the samples come from. A data set of your own, used with `--dataset my_module.Mine`:

        class Mine(Dataset):
            classes = 2

            def read(self, progress: Progress) -> Arrays:
                x, y = np.load("x.npy"), np.load("y.npy")    # float32 [n, features], int64 [n]
                return Arrays(x[100:], y[100:], x[:100], y[:100])

    Import heavy packages inside `read` only, so that `--help` stays fast.

    Attributes:
        task: what the targets are, and so what is learned; classification unless the data set says otherwise.
        classes: number of classes; 0: the task has none.
        mean: per channel, for uint8 images on the scale 0..1; None: images are only scaled to 0..1.
        std: like `mean`.
        vocabulary: number of different tokens; None: no text.
        read_version: version of `read`. Raise it whenever `read` gives other arrays for the same files; they are then
            prepared again. Changes in a user's module, and in modules that it imports, are noticed anyway.
    """

    task: Task = Classification()
    classes: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vocabulary: int | None = None
    read_version: int = 1

    @abstractmethod
    def read(self, progress: Progress) -> Arrays:
        """Decode the published files; `progress` prints a line for the user.

        The global generators of random and numpy.random are seeded in the same way in every run, whatever the seed.

        Raises:
            BadInput: a file is missing or damaged; the message names it.
        """

    def sources(self) -> list[Path]:
        """The files that `read` decodes. If one has changed, the arrays are prepared again.

        Files or folders. Of a folder only the names in it, and in all folders below, are compared, and only if its
        modification time has changed. The contents of its files are not compared.
        """
        return []

    def folder(self) -> Path | None:
        """The folder that gets the prepared arrays; None: nothing is prepared: `read` is fast, or there is no place.

        Arrays are prepared for each class, and for each choice of its options. Options that are paths do not count,
        so that folders can be moved: `sources` distinguishes files. If the user's code has changed, arrays are
        prepared again.
        """
        return None

    def fetch(self) -> None:
        """Download missing files of `sources`, on a machine with internet access."""
        raise BadInput(f"{type(self).__name__} has nothing to fetch: it is not a data set to download")


def check_arrays(dataset: Dataset, arrays: Arrays, task: Task | None = None) -> None:
    """Raise `BadInput`, with the first problem, unless `arrays` are as `Arrays` describes them.

    Args:
        task: what the targets are for; None: the data set's own task.
    """
    for problem in _problems(dataset, arrays):
        raise BadInput(f"data set {type(dataset).__name__}: {problem}")
    check_targets(dataset, arrays, task or dataset.task)


def check_targets(dataset: Dataset, arrays: Arrays, task: Task) -> None:
    """Raise `BadInput`, with the first problem, unless the targets are what the task needs."""
    for problem in _problems_of_targets(dataset, arrays, task):
        raise BadInput(f"data set {type(dataset).__name__}: {problem}")


def _problems_of_targets(dataset: Dataset, arrays: Arrays, task: Task) -> Iterator[str]:
    for name, y in (("train_y", arrays.train_y), ("test_y", arrays.test_y)):
        if problem := task.problem(read_only(y), dataset):
            yield f"{name} {problem}"
    if arrays.train_y.shape[1:] != arrays.test_y.shape[1:]:
        yield f"train_y has shape {arrays.train_y.shape}, but test_y {arrays.test_y.shape}"
    if task.is_spatial and arrays.train_y.shape[1:] != arrays.train_x.shape[2:]:
        yield f"images are {arrays.train_x.shape[2:]}, but masks {arrays.train_y.shape[1:]}: both must be the same"


def _problems(dataset: Dataset, arrays: Arrays) -> Iterator[str]:
    if not isinstance(arrays, Arrays):
        yield f"read() returned a {type(arrays).__name__}: it must return Arrays(train_x, train_y, test_x, test_y)"
    for part, x, y in (("train", arrays.train_x, arrays.train_y), ("test", arrays.test_x, arrays.test_y)):
        for name, array in ((f"{part}_x", x), (f"{part}_y", y)):
            if not isinstance(array, np.ndarray):
                yield f"{name} is a {type(array).__name__}: it must be a NumPy array"
        if x.ndim < 2 or len(x) == 0:
            yield f"{part}_x has shape {x.shape}: it must be [samples, ...], with at least one sample"
        if x.dtype not in (np.uint8, np.float32, np.int32, np.int64):
            yield f"{part}_x is {x.dtype}: images are uint8, features float32, tokens int32 or int64"
        if x.dtype == np.uint8 and x.ndim != 4:
            yield f"{part}_x is uint8 of shape {x.shape}: images are [samples, channels, height, width]"
        if x.dtype == np.float32 and not np.isfinite(x).all():
            yield f"{part}_x has values that are not finite"
        if y.shape[:1] != x.shape[:1]:
            yield f"{part}_y has shape {y.shape}: it must have a row for each of {len(x)} samples"
        if (x.dtype.kind == "i") != (dataset.vocabulary is not None):
            yield f"{part}_x is {x.dtype}, but the vocabulary is {dataset.vocabulary}: text has one, nothing else"
        if dataset.vocabulary is not None and not 0 <= x.min() <= x.max() < dataset.vocabulary:
            yield f"{part}_x is from {x.min()} to {x.max()}: tokens are 0 to {dataset.vocabulary - 1}"
        users = arrays.train_users if part == "train" else arrays.test_users
        if users is not None and not isinstance(users, np.ndarray):
            yield f"{part}_users is a {type(users).__name__}: it must be a NumPy array, or None"
        if users is not None and (users.dtype != np.int64 or users.shape != x.shape[:1] or users.min() < 0):
            yield f"{part}_users is {users.dtype} of shape {users.shape}: it must be int64 >= 0 of shape ({len(x)},)"
    train_x, test_x = arrays.train_x, arrays.test_x
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        yield f"train_x is {train_x.dtype} {train_x.shape}, but test_x is {test_x.dtype} {test_x.shape}"
    for name, channels in (("mean", dataset.mean), ("std", dataset.std)):
        if channels is not None and np.ndim(channels) != 1:
            yield f"{name} is {channels}: it must be a tuple of one number per channel, or None"
        if channels is not None and len(channels) != train_x.shape[1]:
            yield f"{name} is {channels}, but the samples have {train_x.shape[1]} channels"
    if dataset.std is not None and not all(value > 0 for value in dataset.std):
        yield f"std is {dataset.std}: samples are divided by it, so it must be above 0"


def as_stored(x: NDArray) -> NDArray:
    """`x` as it is stored in memory, on disk and in shared memory: images as [n, H, W, C]; C-contiguous.

    With the channels last, a row is a sample and gathered rows are a batch in PyTorch's channels_last layout.
    """
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)


def npy_sha256(x: NDArray) -> str:
    """SHA-256, in hexadecimal, of the .npy file that NumPy would write."""
    sink = _Hashed()
    np.save(sink, x, allow_pickle=False)
    return sink.digest.hexdigest()


class _Hashed(io.RawIOBase):
    """A file of which only the checksum is kept."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


def as_seen(stored: NDArray) -> NDArray:
    """The inverse of `as_stored`, as a view: images [n, C, H, W]."""
    return stored.transpose(0, 3, 1, 2) if stored.ndim == 4 else stored
