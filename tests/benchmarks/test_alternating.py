"""Two experiments in one job, whose rounds are compared."""

from __future__ import annotations

import numpy as np

from benchmarks.alternating import pairs_of_rounds
from tests.support.experiments import Alone

OPTIONS = "--clients 6 --cohort 3 --model LogisticRegression --local.epochs 1 --threads 1"


def test_rounds_in_turn() -> None:
    """Oracle: the same clients in both, and the first round left out; only one of them is in bfloat16."""
    watched: list[str] = []
    found = list(
        pairs_of_rounds(
            Alone(),
            f"{OPTIONS} --local.precision bf16",
            OPTIONS,
            3,
            lambda experiment: watched.append(experiment.local.precision),
        )
    )
    assert watched == ["bf16", "float32"]
    assert [(ours.row["round"], plain.row["round"]) for ours, plain in found] == [(2, 2), (3, 3), (4, 4)]
    for ours, plain in found:
        np.testing.assert_array_equal(ours.clients["client"], plain.clients["client"])
        np.testing.assert_allclose(ours.clients["loss"], plain.clients["loss"], rtol=0.01)
    assert any((ours.clients["loss"] != plain.clients["loss"]).any() for ours, plain in found)
