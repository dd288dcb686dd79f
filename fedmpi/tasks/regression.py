"""One or several numbers per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.tasks.base import Described, Metric, Ratio, Rows, Strata, Task
from fedmpi.typing import Tensor

DECILES = 10


class Regression(Task):
    """Each sample has d numbers: targets float32 [n, d] and outputs [B, d]. The loss is the mean squared error.

    Metrics: rmse, mae (both over all samples and outputs) and r2 (mean over outputs of the coefficient of
    determination), loss. Partitions by label use the deciles of the first output's training targets.
    """

    main = "rmse"
    usual = ("loss", "rmse", "mae", "r2")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "rmse": Ratio(of="loss", better="lower", then=np.sqrt),
        "mae": Metric(lambda rows, targets, owners: rows["absolute"].mean(dtype=np.float64), "lower"),
        "r2": Metric(lambda rows, targets, owners: _r2(rows, targets), "higher"),
        "loss": Ratio(of="loss", better="lower"),
    }

    def problem(self, y: NDArray, about: Described) -> str | None:
        if y.dtype != np.float32 or y.ndim != 2 or y.shape[1] == 0:
            return f"is {y.dtype} of shape {y.shape}: Regression needs float32 of shape ({len(y)}, outputs)"
        if not np.isfinite(y).all():
            return "has values that are not finite: Regression needs finite numbers"
        return None

    def outputs(self, y: NDArray, about: Described) -> int:
        return int(y.shape[1])

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y.to(output.dtype)).square().mean(-1)

    def columns(self, outputs: int) -> Mapping[str, int]:
        return {"loss": 1, "squared": outputs, "absolute": outputs}

    def measure(self, output: Tensor, y: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        apart = output - y.to(output.dtype)
        return {"loss": self.loss(output, y), "squared": apart.square(), "absolute": apart.abs()}

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata:
        edges = np.quantile(train_y[:, 0], np.arange(1, DECILES) / DECILES)
        train, test = (np.searchsorted(edges, y[:, 0], side="right").astype(np.int64) for y in (train_y, test_y))
        return Strata(train, test, DECILES)


def _r2(rows: Rows, targets: NDArray) -> float:
    """The mean over outputs of 1 - squared errors / squared deviations from the mean; NaN for constant targets."""
    targets = targets.astype(np.float64)
    spread = np.square(targets - targets.mean(0)).sum(0)
    left = rows["squared"].reshape(len(targets), -1).sum(0, dtype=np.float64)
    return float(np.mean(1 - np.divide(left, spread, out=np.full(len(left), np.nan), where=spread > 0)))
