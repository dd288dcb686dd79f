"""The published image data sets, in torchvision's layout, and read by torchvision."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._published import Published, damaged, one_line
from fedmpi.data.base import Arrays, Progress


class _OfTorchvision(Published):
    """A data set of torchvision, which its `name` finds there."""

    def published(self, **options: Any) -> Any:
        """torchvision's own object of this data set."""
        import torchvision

        return getattr(torchvision.datasets, self.name)(self.root, **options)

    def download(self) -> None:
        self.published(download=True)


class _Idx(_OfTorchvision):
    """The files of MNIST and of what took over its format."""

    files = (
        "raw/train-images-idx3-ubyte",
        "raw/train-labels-idx1-ubyte",
        "raw/t10k-images-idx3-ubyte",
        "raw/t10k-labels-idx1-ubyte",
    )
    classes = 10

    def home(self) -> Path:
        return self.root / self.name

    def decode(self, progress: Progress) -> Arrays:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        train_x, train_y, test_x, test_y = (
            _read_idx(path, read)
            for path, read in zip(self.sources(), (read_image_file, read_label_file) * 2, strict=True)
        )
        return Arrays(train_x[:, None], train_y, test_x[:, None], test_y)


class _Cifar(_OfTorchvision):
    """The files of CIFAR-10 and CIFAR-100, with the published checksums that torchvision knows."""

    def decode(self, progress: Progress) -> Arrays:
        import torchvision
        from torchvision.datasets.utils import check_integrity

        known = getattr(torchvision.datasets, self.name)
        checksums = dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])
        for path in self.sources():
            if not check_integrity(path, checksums[path.name]):
                raise damaged(path, "its checksum is not the published one")
        train, test = self.published(train=True), self.published(train=False)
        return Arrays(
            train.data.transpose(0, 3, 1, 2),
            np.array(train.targets, np.int64),
            test.data.transpose(0, 3, 1, 2),
            np.array(test.targets, np.int64),
        )


class MNIST(_Idx):
    """70,000 handwritten digits, 1x28x28 (LeCun et al., 1998).

    Args:
        root: folder that holds MNIST/raw.
    """

    name = "MNIST"
    mean = (0.1307,)
    std = (0.3081,)


class FashionMNIST(_Idx):
    """70,000 images of clothes, 1x28x28 (Xiao et al., 2017).

    Args:
        root: folder that holds FashionMNIST/raw.
    """

    name = "FashionMNIST"
    mean = (0.2860,)
    std = (0.3530,)


class CIFAR10(_Cifar):
    """60,000 photographs of 10 kinds of things, 3x32x32 (Krizhevsky, 2009).

    Args:
        root: folder that holds cifar-10-batches-py.
    """

    name = "CIFAR10"
    classes = 10
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def home(self) -> Path:
        return self.root / "cifar-10-batches-py"


class CIFAR100(_Cifar):
    """60,000 photographs of 100 kinds of things, 3x32x32 (Krizhevsky, 2009).

    Args:
        root: folder that holds cifar-100-python.
    """

    name = "CIFAR100"
    classes = 100
    files = ("train", "test", "meta")
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def home(self) -> Path:
        return self.root / "cifar-100-python"


def _read_idx(path: Path, read: Callable[[str], Any]) -> NDArray:
    """One file; if the archive it came from lies beside it, the checksum in there must fit."""
    archive = path.with_name(f"{path.name}.gz")
    if archive.is_file():
        recorded = int.from_bytes(archive.read_bytes()[-8:-4], "little")  # gzip ends with CRC32 and length
        if zlib.crc32(path.read_bytes()) != recorded:
            raise damaged(path, f"its checksum is not the one in {archive.name}")
    try:
        return np.asarray(read(str(path)))
    except Exception as error:  # a cut or foreign file fails in as many ways as it has fields
        raise damaged(path, one_line(error)) from error
