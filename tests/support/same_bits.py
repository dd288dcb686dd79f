"""What two runs of the same seed have in common, however they came about: everything but times and places."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from fedmpi.results import Run

TIMINGS = {"seconds", "train_seconds", "communication_seconds", "evaluation_seconds"}
TIMINGS |= {"teacher_seconds", "server_seconds", "cpu_joules", "gpu_joules"}


def assert_same_bits(run: Run, other: Run) -> None:
    """Weights, metrics, client records and whatever else a method leaves."""
    assert run.status == other.status == "finished"
    assert run.weights_sha256 == other.weights_sha256
    np.testing.assert_equal(run.initial, other.initial)
    mine, theirs = contents(run), contents(other)
    assert mine.keys() == theirs.keys()
    for place, values in mine.items():
        np.testing.assert_array_equal(values, theirs[place], err_msg=place)
        assert values.dtype == theirs[place].dtype, place


def contents(run: Run) -> dict[str, Any]:
    """All datasets of the file, but for what differs from job to job."""
    found: dict[str, Any] = {}

    def visit(place: str, item: Any) -> None:
        table, _, column = place.rpartition("/")
        by_chance = column in TIMINGS or table == "ranks" or place == "clients/rank"
        if isinstance(item, h5py.Dataset) and not by_chance:
            found[place] = item[()]

    with h5py.File(run.path, "r") as file:
        file.visititems(visit)
    return found
