"""Data sets of image files in folders, decoded by all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.data._image_folders import Labelled, class_names, files_in, labelled, parts_of, subfolders, tell
from fedmpi.data._published import Published, damaged, one_line
from fedmpi.data.base import Arrays, Dataset, Progress
from fedmpi.data.pictures import as_rgb
from fedmpi.data.prepared import OURS, UnreadableArrays, open_prepared
from fedmpi.errors import BadInput
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt, interval

#: Images that a thread decodes before it takes the next ones, and seconds from one line of progress to the next.
PIECE = 100
QUIET_SECONDS = 10.0


@with_options
class ImageFolder(Dataset):
    """Your own images: a folder per class, as ROOT/train/CLASS/* and ROOT/test/CLASS/*, or as ROOT/CLASS/*.

    The folders may also be named training, testing, val, valid and validation, in upper or lower case. If there are
    both a test folder and a validation folder, the latter is not used. Classes are numbered in the order of their
    sorted names. If there is no test folder, test images are taken from each class, sorted by name: for a share of
    0.2 every fifth image, whatever the seed.

    Images are converted to RGB, and their largest centred square is resized (bilinear). They are normalised by
    ImageNet's mean and standard deviation. EXIF orientation is applied, transparent pixels become white, and 16 bits
    are scaled to 8. Of an animation the first frame is used. Colour profiles are not applied.

    Images in subfolders of a class folder are found as well. Files that are not images are not used, and their number
    is reported. Damaged images are refused. Added and removed files are noticed, and the arrays are prepared again. A
    file whose content has changed is not noticed.

    Args:
        root: the folder of class folders, or of train and test.
        size: height and width to which images are resized.
        test_share: share of test images in each class, if there is no test folder.
    """

    root: Path = Path("data/images")
    size: PositiveInt = 64
    test_share: Annotated[float, interval("(0, 1)")] = 0.2

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    read_version = 2

    @cached_property
    def classes(self) -> int:  # type: ignore[override]
        """The number of class folders.

        It is read from the prepared arrays, because the images may have been deleted.
        """
        arrays = None
        with suppress(UnreadableArrays):
            arrays = open_prepared(self)
        return int(arrays.train_y.max()) + 1 if arrays else len(subfolders(parts_of(self.root).training))

    def folder(self) -> Path:
        return self.root / f"{OURS}size-{self.size}-test_share-{self.test_share}"

    def sources(self) -> list[Path]:
        return [part for part in parts_of(self.root).used if subfolders(part)]

    def read(self, progress: Progress) -> Arrays:
        parts = parts_of(self.root)
        names = class_names(parts.training)
        progress(f"ImageFolder: decoding {self.root}")
        self.classes = len(names)
        train_files, passed = labelled(parts.training, names)
        if parts.test:
            test_files, others = labelled(parts.test, names)
            passed += others
        else:
            train_files, test_files = self._divided(train_files)
        if parts.training != self.root:
            passed = files_in(self.root) + passed
        tell(parts, names, train_files, test_files, passed, progress)
        decoded = [_decode(files, self.size, self._square, progress) for files in (train_files, test_files)]
        return Arrays(*decoded[0], *decoded[1])

    def _square(self, image: Any) -> Any:
        from PIL import Image, ImageOps

        return ImageOps.fit(as_rgb(image), (self.size, self.size), Image.Resampling.BILINEAR)

    def _divided(self, files: Labelled) -> tuple[Labelled, Labelled]:
        """Of n images of a class, floor(n * test_share) are test images, spread evenly over the sorted names."""
        parts: tuple[Labelled, Labelled] = [], []
        before = [0] * self.classes
        for path, label in files:
            before[label] += 1
            due, was_due = (int(n * self.test_share + 1e-9) for n in (before[label], before[label] - 1))
            parts[due > was_due].append((path, label))
        return parts


class TinyImageNet(Published):
    """110,000 images of 200 classes, 3x64x64, from ImageNet (Le and Yang, 2015). Its val folder is the test set.

    Args:
        root: folder that holds tiny-imagenet-200.
    """

    name = "TinyImageNet"
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    archive = "tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"
    files = ("wnids.txt", "val/val_annotations.txt", "val/images")
    classes = 200
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2302, 0.2265, 0.2262)

    def home(self) -> Path:
        return self.root / "tiny-imagenet-200"

    def sources(self) -> list[Path]:
        wnids, *others = super().sources()
        names = _lines(wnids) if wnids.is_file() else []
        return [wnids, *others, *(self._training(name) for name in names)]

    def _training(self, name: str) -> Path:
        return self.home() / "train" / name / "images"

    def download(self) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(self.url, self.root, md5=self.md5, remove_finished=True)

    def decode(self, progress: Progress) -> Arrays:
        wnids, annotations, test = super().sources()
        names = sorted(set(_lines(wnids)))
        if len(names) != self.classes:
            raise damaged(wnids, f"it names {len(names)} classes, not {self.classes}")
        labels = {name: label for label, name in enumerate(names)}
        train_files = [(path, label) for name, label in labels.items() for path in files_in(self._training(name))]
        test_files: Labelled = []
        for number, line in enumerate(_lines(annotations), start=1):
            file, _, rest = line.partition("\t")
            name = rest.partition("\t")[0]
            if name not in labels:
                raise damaged(annotations, f"line {number} names the class {name[:20]!r}, unknown to {wnids.name}")
            test_files.append((test / file, labels[name]))
        if sorted(path for path, _ in test_files) != files_in(test):
            raise damaged(annotations, f"it names {len(test_files)} images, which are not those of {test}")
        decoded = [_decode(files, 64, _as_published, progress) for files in (train_files, test_files)]
        return Arrays(*decoded[0], *decoded[1])


def _as_published(image: Any) -> Any:
    if image.size != (64, 64):
        raise ValueError(f"it is {image.width}x{image.height}, not 64x64")
    return image.convert("RGB")


def _decode(
    files: Labelled, size: int, fit: Callable[[Any], Any], progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 3, size, size], whose channels come last in memory, and their labels.

    Threads share the work, because Pillow decodes and resizes without Python's global lock. Each writes into the
    final array, so there is no second copy.

    Args:
        fit: makes an opened image an RGB image of the right size.
    """
    from PIL import Image, UnidentifiedImageError

    images = np.empty((len(files), size, size, 3), np.uint8)

    def fill(start: int) -> int:
        stop = min(start + PIECE, len(files))
        for place in range(start, stop):
            path = files[place][0]
            try:
                with Image.open(path) as image:
                    images[place] = np.asarray(fit(image))
            except UnidentifiedImageError:
                raise BadInput(f"{path} is not an image that Pillow can read") from None
            except Exception as error:  # a damaged file fails in as many ways as there are formats
                raise BadInput(f"{path} cannot be decoded: {one_line(error)}") from error
        return stop

    said = monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        for done in pool.map(fill, range(0, len(files), PIECE)):
            if monotonic() - said > QUIET_SECONDS:
                said = monotonic()
                progress(f"{done:,} of {len(files):,} images decoded")
    return images.transpose(0, 3, 1, 2), np.array([label for _, label in files], np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise damaged(path, one_line(error)) from error
