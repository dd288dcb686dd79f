"""The figures of DistributionFusion from results files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmpi.algorithms.distribution_fusion import DistributionFusion
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Dirichlet
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.training.settings import LocalTraining
from studies.inferred import divergence, label_shares, running_statistics
from tests.support.digits import Few
from tests.support.experiments import run


def test_divergence() -> None:
    """Oracles, by hand: none of equal ones; of 9 values in one bin of 40 and 9 in another, with one more in each."""
    some, others = np.full(9, -1.95), np.full(9, 0.05)
    assert divergence(some, some) == 0
    assert divergence(some, others) == pytest.approx((10 * np.log(10) + np.log(1 / 10)) / 49)
    assert divergence(np.append(some, 7.0), others) == divergence(some, others), "what lies outside is not counted"


def test_label_shares(tmp_path: Path) -> None:
    """Oracle: FedAvg's weights give the classes of the round's samples, as they are; ours give others."""
    settings = {"dataset": Few(150), "partition": Dirichlet(0.3), "clients": 5, "model": LeNet()}
    settings |= {"local": LocalTraining(epochs=1), "sampler": Uniform(), "cohort": 3, "rounds": 2}
    method = DistributionFusion(mixture="cohort", first_steps=120, pi_power=0.0, twin=False)
    made = run(tmp_path / "made.h5", method, **settings)
    true, fused, plain = label_shares(made)
    counts, clients = made.partition["label_counts"], made.clients["client"].reshape(2, 3)
    np.testing.assert_allclose(true, counts.sum(0) / counts.sum())
    np.testing.assert_allclose(plain, [c.sum(0) / c.sum() for c in counts[clients]])
    np.testing.assert_allclose(fused.sum(1), 1)
    assert np.abs(fused - plain).max() > 1e-3
    assert len(running_statistics(made)) == 96
    with pytest.raises(BadInput, match="has no weights omega"):
        label_shares(run(tmp_path / "plain.h5", FedAvg(), **settings))
