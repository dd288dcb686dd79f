"""What two runs of the same seed have in common, however they came about: everything but times and places."""

from __future__ import annotations

import numpy as np

from fedmpi.results import Run

TIMINGS = {"seconds", "train_seconds", "communication_seconds", "evaluation_seconds"}
TIMINGS |= {"teacher_seconds", "server_seconds"}


def assert_same_bits(run: Run, other: Run) -> None:
    """Weights, metrics, client records and whatever else a method leaves."""
    assert run.status == other.status == "finished"
    assert run.weights_sha256 == other.weights_sha256
    np.testing.assert_equal(run.initial, other.initial)
    for table in ("rounds", "clients", "evaluation", "clusters", "newcomers", "partition", "model", "synthetic"):
        mine, theirs = run.table(table), other.table(table)
        assert list(mine) == list(theirs), table
        for column in mine.keys() - TIMINGS - {"rank"}:
            np.testing.assert_array_equal(mine[column], theirs[column], err_msg=f"{table} {column}")
            assert mine[column].dtype == theirs[column].dtype, f"{table} {column}"
    generators = run.stage("generator"), other.stage("generator")
    assert generators[0].keys() == generators[1].keys()
    for column in generators[0].keys() - TIMINGS:
        np.testing.assert_array_equal(generators[0][column], generators[1][column], err_msg=column)
    np.testing.assert_equal(run.network("generator_weights"), other.network("generator_weights"))
