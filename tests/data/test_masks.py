"""MNIST as a segmentation task."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import Digits, MNISTMasks, prepared
from tests.support.experiments import read


def write_mnist(root: Path, train: int, test: int) -> None:
    """Files in MNIST's format: the digits of scikit-learn, enlarged to 24x24 within 28x28."""
    digits = read(Digits())
    (root / "MNIST" / "raw").mkdir(parents=True)

    def write(name: str, x: NDArray) -> None:
        header = bytes([0, 0, 8, x.ndim]) + struct.pack(f">{x.ndim}i", *x.shape)
        (root / "MNIST" / "raw" / name).write_bytes(header + x.astype(np.uint8).tobytes())

    for part, x, y, count in (
        ("train", digits.train_x, digits.train_y, train),
        ("t10k", digits.test_x, digits.test_y, test),
    ):
        large = np.pad(x[:count, 0].repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
        write(f"{part}-images-idx3-ubyte", large)
        write(f"{part}-labels-idx1-ubyte", y[:count])


def test_masks(tmp_path: Path) -> None:
    """Oracle: pixel by pixel; each threshold has prepared arrays of its own, next to the files."""
    write_mnist(tmp_path, 50, 20)
    digits = read(Digits())
    for threshold in (127, 0):
        arrays = prepared.load(MNISTMasks(tmp_path, threshold), lambda line: None)
        assert arrays.on_disk
        for x, y, labels in (
            (arrays.train_x, arrays.train_y, digits.train_y),
            (arrays.test_x, arrays.test_y, digits.test_y),
        ):
            assert y.dtype == np.int64
            assert y.shape == (len(x), 28, 28)
            for image, mask, label in zip(x, y, labels, strict=False):
                bright = {tuple(place) for place in np.argwhere(image[0] > threshold).tolist()}
                assert {tuple(place) for place in np.argwhere(mask).tolist()} == bright
                assert {*mask.ravel().tolist()} == {0, label + 1}
    folders = {path.parent.name for path in (tmp_path / "MNIST").glob("*/fedmpi-1")}
    assert folders == {"masks-threshold-127", "masks-threshold-0"}
