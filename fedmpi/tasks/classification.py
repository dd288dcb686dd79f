"""One class per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.tasks.base import PERCENT, Described, Metric, Ratio, Rows, Strata, Task
from fedmpi.tasks.losses import cross_entropy
from fedmpi.typing import Tensor


def _by_scikit_learn(name: str, **options: Any) -> Callable[[Rows, NDArray, NDArray[np.int64]], float]:
    def compute(rows: Rows, targets: NDArray, owners: NDArray[np.int64]) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(targets, rows["predicted"].astype(np.int64), **options))

    return compute


def _macro_f1(rows: Rows, targets: NDArray, owners: NDArray[np.int64]) -> float:
    compute = _by_scikit_learn("f1_score", average="macro", labels=np.unique(targets), zero_division=0.0)
    return compute(rows, targets, owners)


_balanced_accuracy = _by_scikit_learn("recall_score", average="macro", zero_division=np.nan)


def _auroc(rows: Rows, targets: NDArray, owners: NDArray[np.int64]) -> float:
    from sklearn.metrics import roc_auc_score

    known = [label for label in np.unique(targets).tolist() if 0 < (targets == label).sum() < len(targets)]
    if not known or not np.isfinite(rows["scores"]).all():
        return np.nan
    return float(np.mean([roc_auc_score(targets == label, rows["scores"][:, label]) for label in known]))


def _top_5(rows: Rows, targets: NDArray, owners: NDArray[np.int64]) -> float:
    scores = rows["scores"]
    own = scores[np.arange(len(targets)), targets]
    return float(((scores > own[:, None]).sum(1) < 5).mean())


def expected_calibration_error(rows: Rows, targets: NDArray, owners: NDArray[np.int64], bins: int = 15) -> float:
    """sum_b (n_b / n) |accuracy_b - confidence_b| over equally wide bins of the largest probability."""
    if not np.isfinite(rows["scores"]).all():
        return np.nan
    confidence = rows["scores"].max(1).astype(np.float64)
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    apart = np.bincount(which, weights=rows["correct"] - confidence, minlength=bins)
    return float(np.abs(apart).sum() / len(targets))


class Classification(Task):
    """Each sample has one of C classes: labels int64 [n] from 0, logits [B, C], and cross entropy as the loss.

    Metrics: accuracy, loss. By name: macro_f1 (mean over classes of F1), balanced_accuracy (mean over classes of
    their accuracy), auroc (mean over classes of one against the rest), top_5 (share of samples whose label is among
    the five largest logits), ece (expected calibration error with 15 bins; Guo et al., 2017). A class without samples
    does not count in means over classes.
    """

    main = "accuracy"
    usual = ("loss", "accuracy")
    has_classes = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Ratio(of="correct", unit=PERCENT),
        "loss": Ratio(of="loss", better="lower"),
        "macro_f1": Metric(_macro_f1, unit=PERCENT),
        "balanced_accuracy": Metric(_balanced_accuracy, unit=PERCENT),
        "auroc": Metric(_auroc, unit=PERCENT, needs=("scores",)),
        "top_5": Metric(_top_5, unit=PERCENT, needs=("scores",)),
        "ece": Metric(expected_calibration_error, "lower", needs=("scores",)),
    }

    def problem(self, y: NDArray, about: Described) -> str | None:
        if not isinstance(about.classes, (int, np.integer)) or about.classes < 1:
            return f"needs `classes` of the data set, the number of classes, which is {about.classes}"
        if y.dtype != np.int64 or y.ndim != 1:
            return f"is {y.dtype} of shape {y.shape}: Classification needs int64 labels of shape ({len(y)},)"
        if y.min() < 0 or y.max() >= about.classes:
            return f"is from {y.min()} to {y.max()}: labels are 0 to {about.classes - 1}"
        return None

    def outputs(self, y: NDArray, about: Described) -> int:
        return int(about.classes)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(output, y)

    def columns(self, outputs: int) -> Mapping[str, int]:
        return {"loss": 1, "predicted": 1, "correct": 1, "scores": outputs}

    def optional(self) -> tuple[str, ...]:
        return ("scores",)

    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        predicted = output.argmax(1)
        measured = {"loss": self.loss(output, y), "predicted": predicted, "correct": predicted == y}
        return {**measured, "scores": output.softmax(1)} if "scores" in names else measured

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata:
        return Strata(train_y, test_y, self.outputs(train_y, about))
