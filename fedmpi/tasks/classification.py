"""One class per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.lazy import torch
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
    if not known or np.isnan(rows["log_odds"]).any():
        return np.nan
    scores = np.nan_to_num(rows["log_odds"])  # scikit-learn takes no infinity, which a class that is ruled out has
    return float(np.mean([roc_auc_score(targets == label, scores[:, label]) for label in known]))


def expected_calibration_error(rows: Rows, targets: NDArray, owners: NDArray[np.int64], bins: int = 15) -> float:
    """sum_b (n_b / n) |accuracy_b - confidence_b| over equally wide bins of the largest probability."""
    if not np.isfinite(rows["confidence"]).all():
        return np.nan
    confidence = rows["confidence"].astype(np.float64)
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    apart = np.bincount(which, weights=rows["correct"] - confidence, minlength=bins)
    return float(np.abs(apart).sum() / len(targets))


def _log_odds(logits: Tensor) -> Tensor:
    """[B, C] log(p / (1 - p)) of the probability of each class, the softmax of logits [B, C].

    It orders samples as the probability does. But float32 probabilities near 0 and 1 are equal, and these are not.
    """
    below = logits - logits.amax(1, keepdim=True)
    parts = below.exp()
    odds = below - (parts.sum(1, keepdim=True) - parts).log()
    first = logits.argmax(1, keepdim=True)  # what its part leaves of the sum may be lost in rounding
    return odds.scatter(1, first, -below.scatter(1, first, -torch.inf).logsumexp(1, keepdim=True))


def _place(logits: Tensor, y: Tensor) -> Tensor:
    """[B] how many classes come before the label, which are 0 to C - 1; infinity if a logit is not a number."""
    own = logits.gather(1, y[:, None])
    is_lower = torch.arange(logits.shape[1], device=y.device) < y[:, None]
    before = (logits > own) | ((logits == own) & is_lower)
    return before.sum(1).where(~logits.isnan().any(1), torch.inf)


class Classification(Task):
    """Each sample has one of C classes: labels int64 [n] from 0, logits [B, C], and cross entropy as the loss.

    Metrics: accuracy, loss. By name: macro_f1 (mean over classes of F1), balanced_accuracy (mean over classes of
    their accuracy), auroc (mean over classes of one against the rest: the share of pairs of samples in which the
    class is more probable for the one that has it, where ties count half), top_5 (share of samples whose label is
    among the five largest logits), ece (expected calibration error with 15 bins; Guo et al., 2017). A class without
    samples does not count in means over classes. Of equal logits, that of the lower class counts as the larger.

    Measured of each sample: loss, predicted (the class with the largest logit), correct (0 or 1). For metrics that
    need them: scores [C] (the probabilities), log_odds [C] (log(p / (1 - p)), which order samples also where float32
    probabilities are equal, near 0 and 1), confidence (the largest probability), place (how many classes have larger
    logits than the label).
    """

    main = "accuracy"
    usual = ("loss", "accuracy")
    has_classes = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Ratio(of="correct", unit=PERCENT),
        "loss": Ratio(of="loss", better="lower"),
        "macro_f1": Metric(_macro_f1, unit=PERCENT),
        "balanced_accuracy": Metric(_balanced_accuracy, unit=PERCENT),
        "auroc": Metric(_auroc, unit=PERCENT, needs=("log_odds",)),
        "top_5": Metric(lambda rows, targets, owners: (rows["place"] < 5).mean(), unit=PERCENT, needs=("place",)),
        "ece": Metric(expected_calibration_error, "lower", needs=("confidence",)),
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
        always = {"loss": 1, "predicted": 1, "correct": 1}
        return {**always, "scores": outputs, "log_odds": outputs, "confidence": 1, "place": 1}

    def optional(self) -> tuple[str, ...]:
        return "scores", "log_odds", "confidence", "place"

    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        predicted = output.argmax(1)
        optional: dict[str, Callable[[], Tensor]] = {
            "scores": lambda: output.softmax(1),
            "log_odds": lambda: _log_odds(output),
            "confidence": lambda: output.softmax(1).amax(1),
            "place": lambda: _place(output, y),
        }
        measured = {"loss": self.loss(output, y), "predicted": predicted, "correct": predicted == y}
        return measured | {name: make() for name, make in optional.items() if name in names}

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata:
        return Strata(train_y, test_y, self.outputs(train_y, about))
