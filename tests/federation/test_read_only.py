"""User code cannot change arrays that others read later: NumPy says that they are read-only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmpi.algorithms import FedAvg
from fedmpi.data import IID
from fedmpi.federation.federation import Federation
from fedmpi.policies import Cohort, Uniform
from fedmpi.policies.sampling import Pool
from fedmpi.tasks import Classification, Described, Metric, Rows, Strata
from tests.support.experiments import run


def test_a_metric_cannot_change_what_the_next_one_reads() -> None:
    """Oracle: NumPy's message, also for the metric of each client; the rows stay as they were."""

    def largest(rows: Rows, targets: NDArray, owners: NDArray) -> float:
        rows["loss"].sort()
        return float(rows["loss"][-1])

    def others(rows: Rows, targets: NDArray, owners: NDArray) -> float:
        targets += 1
        return 0.0

    rows, y = {"loss": np.array([3, 1, 2], np.float32)}, np.arange(3)
    for compute in (largest, others):
        with pytest.raises(ValueError, match="read-only"):
            Metric(compute)(rows, y, y)
        with pytest.raises(ValueError, match="read-only"):
            Metric(compute).of_owners(rows, y, np.zeros(3, np.int64), 1)
    assert (rows["loss"].tolist(), y.tolist()) == ([3, 1, 2], [0, 1, 2])


class Changing(FedAvg):
    """A method that shuffles an array in place."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def round(self, fed: Federation, cohort: Cohort) -> None:
        array = fed.shards[0] if self.what == "shards" else getattr(fed, self.what)
        fed.stream("order").shuffle(array)
        super().round(fed, cohort)


class Sorting(IID):
    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        labels.sort()
        return super().split(labels, clients, rng)


class Shuffling(Uniform):
    def __init__(self, what: str) -> None:
        self.what = what

    def draw(self, round: int, size: int, pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        rng.shuffle(getattr(pool, self.what))
        return pool.available[:size]


class Numbering(Classification):
    def __init__(self, where: str) -> None:
        self.where = where

    def problem(self, y: NDArray, about: Described) -> str | None:
        return super().problem(self.from_0(y, "problem"), about)

    def strata(self, train_y: NDArray, test_y: NDArray, about: Described) -> Strata:
        return super().strata(self.from_0(train_y, "strata"), test_y, about)

    def weights(self, y: NDArray) -> NDArray[np.float32] | None:
        return super().weights(self.from_0(y, "weights"))

    def from_0(self, y: NDArray, where: str) -> NDArray:
        if where == self.where:
            y -= y.min()
        return y


CHANGING: dict[str, Any] = {
    "algorithm": [Changing(what) for what in ("shards", "samples", "label_counts", "masses")],
    "partition": [Sorting()],
    "sampler": [Shuffling(what) for what in ("samples", "label_counts", "available")],
    "task": [Numbering(where) for where in ("problem", "strata", "weights")],
}


@pytest.mark.parametrize(("option", "number"), [(o, n) for o, some in CHANGING.items() for n in range(len(some))])
def test_what_user_code_receives(option: str, number: int, tmp_path: Path) -> None:
    """Oracle: NumPy's message. Without it, other ranks, or what is computed next, would have other numbers."""
    with pytest.raises(ValueError, match="read-only"):
        run(tmp_path / "run.h5", **{option: CHANGING[option][number]})
