"""Published image data sets in torchvision's folder layout, read by torchvision."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._published import Published, damaged, one_line
from fedmpi.data.base import Arrays, Progress
from fedmpi.errors import BadInput
from fedmpi.options import with_options
from fedmpi.ranges import interval
from fedmpi.tasks import Segmentation

_GZIP = b"\x1f\x8b"


class _OfTorchvision(Published):
    """A data set of torchvision, found there by its `name`."""

    def published(self, **options: Any) -> Any:
        """torchvision's object for this data set."""
        import torchvision

        return getattr(torchvision.datasets, self.name)(self.root, **options)

    def download(self) -> None:
        self.published(download=True)


class _Idx(_OfTorchvision):
    """The files of MNIST and of data sets in the same format.

    They may also be in `home` or in the root, be named with a dot (train-images.idx3-ubyte), and be compressed by
    gzip, with or without the ending .gz.

    Attributes:
        crc32: checksum of each published file, unpacked. Files in the root can only be identified by it.
    """

    files = (
        "raw/train-images-idx3-ubyte",
        "raw/train-labels-idx1-ubyte",
        "raw/t10k-images-idx3-ubyte",
        "raw/t10k-labels-idx1-ubyte",
    )
    crc32: tuple[int, ...]
    classes = 10

    def home(self) -> Path:
        return self.root / self.name

    def sources(self) -> list[Path]:
        return [self._find(path) for path in super().sources()]

    def _find(self, path: Path) -> Path:
        """The file that holds the contents of this one; often itself."""
        for folder in (path.parent, self.home(), self.root):
            for name in (path.name, path.name.replace("-idx", ".idx")):
                for found in (folder / name, folder / f"{name}.gz"):
                    if found.is_file():
                        return found
        return path

    def decode(self, progress: Progress) -> Arrays:
        train_x, train_y, test_x, test_y = (
            self._read(path, crc32, axes)
            for path, crc32, axes in zip(self.sources(), self.crc32, (3, 1, 3, 1), strict=True)
        )
        return Arrays(train_x[:, None], train_y.astype(np.int64), test_x[:, None], test_y.astype(np.int64))

    def _read(self, path: Path, crc32: int, axes: int) -> NDArray[np.uint8]:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            try:
                content = gzip.decompress(content)
            except (EOFError, OSError, zlib.error) as error:
                raise damaged(path, one_line(error)) from error
        elif (archive := path.with_name(f"{path.name}.gz")).is_file():
            recorded = int.from_bytes(archive.read_bytes()[-8:-4], "little")  # gzip ends with CRC32 and length
            if zlib.crc32(content) != recorded:
                raise damaged(path, f"its checksum is not the one in {archive.name}")
        if path.parent == self.root and zlib.crc32(content) != crc32:
            raise BadInput(
                f"{path} has another checksum than {self.name}'s file: if it is that file, move it to {self.home()}"
            )
        return _idx(path, content, axes)


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
        root: folder that holds MNIST/raw, or MNIST with the four files, unpacked or as .gz.
    """

    name = "MNIST"
    crc32 = (0xE9F4D8B3, 0xE0CB4AD2, 0x91373BDF, 0x4AB9EFF9)
    mean = (0.1307,)
    std = (0.3081,)


@with_options
class MNISTMasks(MNIST):
    """MNIST as a segmentation task: pixels of a digit d are of class d + 1, and all others of class 0.

    Args:
        root: folder that holds MNIST/raw, or MNIST with the four files, unpacked or as .gz.
        threshold: grey value above which a pixel belongs to the digit; white is 255.
    """

    threshold: Annotated[int, interval("[0, 254]")] = 127

    task = Segmentation()
    classes = 11

    def folder(self) -> Path:
        return self.home() / f"masks-threshold-{self.threshold}"

    def decode(self, progress: Progress) -> Arrays:
        digits = super().decode(progress)
        train_y, test_y = (
            np.where(x[:, 0] > self.threshold, y[:, None, None] + 1, 0)
            for x, y in ((digits.train_x, digits.train_y), (digits.test_x, digits.test_y))
        )
        return Arrays(digits.train_x, train_y, digits.test_x, test_y)


class FashionMNIST(_Idx):
    """70,000 images of clothes, 1x28x28 (Xiao et al., 2017).

    Args:
        root: folder that holds FashionMNIST/raw, or FashionMNIST with the four files, unpacked or as .gz.
    """

    name = "FashionMNIST"
    crc32 = (0xB4F29F28, 0x741A4657, 0x678FE0B1, 0x80142C1F)
    mean = (0.2860,)
    std = (0.3530,)


class CIFAR10(_Cifar):
    """60,000 photographs of 10 classes, 3x32x32 (Krizhevsky, 2009).

    Args:
        root: folder that holds cifar-10-batches-py.
    """

    name = "CIFAR10"
    archive = "cifar-10-python.tar.gz"
    classes = 10
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def home(self) -> Path:
        return self.root / "cifar-10-batches-py"


class CIFAR100(_Cifar):
    """60,000 photographs of 100 classes, 3x32x32 (Krizhevsky, 2009).

    Args:
        root: folder that holds cifar-100-python.
    """

    name = "CIFAR100"
    archive = "cifar-100-python.tar.gz"
    classes = 100
    files = ("train", "test", "meta")
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def home(self) -> Path:
        return self.root / "cifar-100-python"


def _idx(path: Path, content: bytes, axes: int) -> NDArray[np.uint8]:
    """The contents of an IDX file of bytes: two zeros, 8 for bytes, the number of axes, their lengths, the values."""
    start = 4 + 4 * axes
    if not content.startswith(bytes([0, 0, 8, axes])) or len(content) < start:
        raise damaged(path, f"it does not begin like an IDX file of bytes with {axes} axes")
    shape = np.frombuffer(content, ">i4", axes, 4)
    if len(content) - start != shape.prod(dtype=np.int64):
        raise damaged(path, f"it has {len(content) - start} values, not {' x '.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # which can be written to
