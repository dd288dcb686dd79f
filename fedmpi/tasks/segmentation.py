"""One class per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.lazy import functional
from fedmpi.options import with_options
from fedmpi.tasks.base import PERCENT, Described, Metric, Ratio, Rows, Strata, Target, Task, extremes
from fedmpi.tasks.losses import cross_entropy_of_places, mean_of_places
from fedmpi.typing import Tensor

#: Pixels are counted for so many masks at a time, because intermediate results are as large as the masks.
MASKS_AT_ONCE = 1000


@with_options
class Segmentation(Task):
    """Each pixel has one of C classes: masks int64 [n, H, W], and logits [B, C, H, W].

    The loss is the mean cross entropy over the pixels that count. Metrics: mean_iou (mean over classes of
    intersection over union, both summed over all samples; classes without pixels do not count), pixel_accuracy, loss.
    Partitions by label use the most frequent class of an image, without the class that is the most frequent in all
    training masks (the background), unless an image has no other.

    Args:
        ignore: the value of pixels in masks that do not count.
    """

    ignore: Target = 255

    main = "mean_iou"
    usual = ("loss", "mean_iou", "pixel_accuracy")
    is_spatial = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "mean_iou": Metric(lambda rows, targets, owners: _mean_iou(rows), unit=PERCENT),
        "pixel_accuracy": Ratio(of="hits", over="pixels", unit=PERCENT),
        "loss": Ratio(of="loss", over="pixels", better="lower"),
    }

    def problem(self, y: NDArray, about: Described) -> str | None:
        if not isinstance(about.classes, (int, np.integer)) or about.classes < 1:
            return f"needs `classes` of the data set, the number of classes, which is {about.classes}"
        if y.dtype != np.int64 or y.ndim != 3:
            return f"is {y.dtype} of shape {y.shape}: Segmentation needs int64 of shape ({len(y)}, height, width)"
        least, largest = extremes(y, self.ignore)
        if least < 0 or largest >= about.classes:
            return f"is from {least} to {largest}: classes are 0 to {about.classes - 1}, and {self.ignore} is ignored"
        return None

    def outputs(self, y: NDArray, about: Described) -> int:
        return int(about.classes)

    def output_shape(self, target: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        return (outputs, *target)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return mean_of_places(*cross_entropy_of_places(output, y, 1, self.ignore))

    def weights(self, y: NDArray) -> NDArray[np.float32]:
        return (y != self.ignore).sum((1, 2)).astype(np.float32)

    def columns(self, outputs: int) -> Mapping[str, int]:
        return {"loss": 1, "pixels": 1, "hits": 1, "intersection": outputs, "union": outputs}

    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        losses, counted = cross_entropy_of_places(output, y, 1, self.ignore)
        classes, is_counted = output.shape[1], counted.bool()
        predicted = functional.one_hot(output.argmax(1), classes).bool() & is_counted[..., None]
        true = functional.one_hot(y.where(is_counted, 0), classes).bool() & is_counted[..., None]
        both = (predicted & true).sum((1, 2))
        return {
            "loss": losses.sum((1, 2)),
            "pixels": counted.sum((1, 2)),
            "hits": both.sum(1),
            "intersection": both,
            "union": (predicted | true).sum((1, 2)),
        }

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata:
        classes = self.outputs(train_y, about)

        def counts(y: NDArray) -> NDArray[np.int64]:
            found = np.empty((len(y), classes), np.int64)
            for first in range(0, len(y), MASKS_AT_ONCE):
                some = y[first : first + MASKS_AT_ONCE]
                cells = np.arange(len(some))[:, None, None] * (classes + 1) + np.where(
                    some == self.ignore, classes, some
                )
                each = np.bincount(cells.ravel(), minlength=len(some) * (classes + 1))
                found[first : first + len(some)] = each.reshape(len(some), classes + 1)[:, :classes]
            return found

        train, test = counts(train_y), counts(test_y)
        background = int(train.sum(0).argmax())

        def dominant(counted: NDArray[np.int64]) -> NDArray[np.int64]:
            others = counted.copy()
            others[:, background] = 0
            return np.where(others.any(1), others.argmax(1), background).astype(np.int64)

        return Strata(dominant(train), dominant(test), classes)


def _mean_iou(rows: Rows) -> float:
    intersection, union = (
        rows[name].reshape(len(rows["loss"]), -1).sum(0, dtype=np.float64) for name in ("intersection", "union")
    )
    known = union > 0
    return float(np.mean(intersection[known] / union[known])) if known.any() else np.nan
