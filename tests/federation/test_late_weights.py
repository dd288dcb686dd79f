"""Weights that a later training has overwritten are refused where they would be averaged or kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi.algorithms import FedAvg
from fedmpi.federation.federation import Federation
from fedmpi.policies import Cohort
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import run

ONE_BY_ONE = LocalTraining(epochs=1, vectorize=False)


class Late(FedAvg):
    """Adds its clients' models after all trainings.

    Args:
        to: what it adds them to.
        copies: whether it has copied them.
    """

    def __init__(self, to: str, copies: bool) -> None:
        self.to, self.copies = to, copies

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.kept = fed.client_state("kept", self.weights)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        trained = []
        for block in fed.my_clients(cohort):
            weights = fed.train(block, start, self).weights
            trained.append((weights.clone() if self.copies else weights, block))
        for weights, block in trained:
            if self.to == "mean":
                mean.add(weights, block)
            elif self.to == "a part":
                mean.add(weights[:, :], block)
            elif self.to == "stack":
                fed.stack(cohort, start).add(weights, block)
            else:
                self.kept[block] = weights
        self.server_step(fed, mean.reduce(empty=self.weights))


@pytest.mark.parametrize("to", ["mean", "a part", "stack", "state"])
def test_overwritten_weights(to: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^these weights were overwritten by a later train"):
        run(tmp_path / "run.h5", Late(to, copies=False), local=ONE_BY_ONE, rounds=1)


@pytest.mark.parametrize("at_once", [False, 4])
def test_copies_and_the_last_weights(at_once: int, tmp_path: Path) -> None:
    """They are averaged; if all clients are in one block, none of their weights are overwritten. Oracle: FedAvg."""
    local = LocalTraining(epochs=1, vectorize=at_once)
    expected = run(tmp_path / "fedavg.h5", FedAvg(), local=local, rounds=2).weights_sha256
    late = run(tmp_path / "late.h5", Late("mean", copies=not at_once), local=local, rounds=2)
    assert late.weights_sha256 == expected
