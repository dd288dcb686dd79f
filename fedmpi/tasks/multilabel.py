"""Several labels per sample, each of which applies or does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.lazy import functional
from fedmpi.tasks.base import PERCENT, Described, Metric, Ratio, Rows, Strata, Task
from fedmpi.typing import Tensor


class MultiLabel(Task):
    """Each of L labels applies to a sample or not: targets uint8 [n, L] of 0 and 1, logits [B, L].

    The loss is the mean over labels of the binary cross entropy. A label is predicted if its probability is at least
    a half. Metrics: map (macro mean average precision: the mean over labels), micro_map (over all decisions), f1
    (over all decisions), loss. Labels that apply to no sample do not count in the mean over labels. Equal logits are
    one step of the precision. Partitions by label use the rarest label of a sample (by the training samples); samples
    without labels are a group of their own.

    Measured of each sample: loss, logits [L]. For metrics that need them: scores [L] (the probabilities, which
    float32 rounds to 1 for large logits).
    """

    main = "map"
    usual = ("loss", "map", "micro_map", "f1")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "map": Metric(lambda rows, targets, owners: _average_precision(rows, targets, by_label=True), unit=PERCENT),
        "micro_map": Metric(
            lambda rows, targets, owners: _average_precision(rows, targets, by_label=False), unit=PERCENT
        ),
        "f1": Metric(lambda rows, targets, owners: _f1(rows, targets), unit=PERCENT),
        "loss": Ratio(of="loss", better="lower"),
    }

    def problem(self, y: NDArray, about: Described) -> str | None:
        if y.dtype != np.uint8 or y.ndim != 2 or y.shape[1] == 0:
            return f"is {y.dtype} of shape {y.shape}: MultiLabel needs uint8 of shape ({len(y)}, labels)"
        if y.max() > 1:
            return f"is up to {y.max()}: MultiLabel needs 0 and 1"
        return None

    def outputs(self, y: NDArray, about: Described) -> int:
        return int(y.shape[1])

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        # log(1 + e^-z) for labels that apply, and log(1 + e^z) for the others
        return functional.softplus((1 - 2 * y.to(output.dtype)) * output).mean(-1)

    def columns(self, outputs: int) -> Mapping[str, int]:
        return {"loss": 1, "logits": outputs, "scores": outputs}

    def optional(self) -> tuple[str, ...]:
        return ("scores",)

    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        measured = {"loss": self.loss(output, y), "logits": output}
        return {**measured, "scores": output.sigmoid()} if "scores" in names else measured

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata:
        labels = train_y.shape[1]
        frequency = train_y.sum(0, dtype=np.int64)

        def rarest(y: NDArray) -> NDArray[np.int64]:
            rank = np.where(y > 0, frequency, np.iinfo(np.int64).max)
            return np.where(y.any(1), rank.argmin(1), labels).astype(np.int64)

        return Strata(rarest(train_y), rarest(test_y), labels + 1)


def _average_precision(rows: Rows, targets: NDArray, by_label: bool) -> float:
    from sklearn.metrics import average_precision_score

    scores = rows["logits"].reshape(targets.shape)
    known = targets.any(0)
    if not known.any() or np.isnan(scores).any():
        return np.nan
    scores = np.nan_to_num(scores)  # scikit-learn takes no infinity
    if by_label:
        return float(average_precision_score(targets[:, known], scores[:, known], average="macro"))
    return float(average_precision_score(targets.ravel(), scores.ravel()))


def _f1(rows: Rows, targets: NDArray) -> float:
    from sklearn.metrics import f1_score

    predicted = rows["logits"].reshape(targets.shape) >= 0
    return float(f1_score(targets.ravel(), predicted.ravel(), zero_division=0.0))
