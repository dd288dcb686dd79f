"""MoFedSAM: FedCM and FedSAM where they agree, and its rule in NumPy on least squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedcm import FedCM
from fedmpi.algorithms.fedsam import FedSAM
from fedmpi.algorithms.mofedsam import MoFedSAM
from fedmpi.errors import BadInput
from fedmpi.models import MLP, LeNet, Model
from fedmpi.policies import Uniform
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import DIMENSION, HalfSquares
from tests.support.experiments import run
from tests.support.least_squares import START, cohorts, gradient, squares


class SquaresMoFedSAM(HalfSquares, MoFedSAM):
    """MoFedSAM on least squares."""


@pytest.mark.parametrize("vectorize", ["off", 3])
@pytest.mark.parametrize("model", [LeNet(), MLP((33,))])
@pytest.mark.parametrize(
    ("method", "other"), [(MoFedSAM(rho=0.0, alpha=0.3), FedCM(0.3)), (MoFedSAM(rho=0.2, alpha=1.0), FedSAM(0.2))]
)
def test_its_limits(method: Algorithm, other: Algorithm, model: Model, vectorize: Any, tmp_path: Path) -> None:
    """Oracle: FedCM without the ascent, and FedSAM without the momentum, bit for bit, over three rounds."""
    local = LocalTraining(epochs=1, batch_size=100, weight_decay=1e-3, vectorize=vectorize)
    settings: dict[str, Any] = {"model": model, "rounds": 3, "local": local, "weighting": "uniform"}
    made = run(tmp_path / "made.h5", method, **settings)
    assert made.weights_sha256 == run(tmp_path / "other.h5", other, **settings).weights_sha256


@pytest.mark.parametrize("vectorize", ["off", 4])
def test_the_rule_on_least_squares(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: NumPy, with three of five clients in a round, and a learning rate that falls to an eighth."""
    rho, alpha = 0.3, 0.25
    local = LocalTraining(epochs=4, lr=0.05, schedule="exponential", decay=0.5, vectorize=vectorize)
    algorithm = SquaresMoFedSAM(rho=rho, alpha=alpha)
    made = squares(tmp_path / "run.h5", algorithm, 4, local, sampler=Uniform(), cohort=3)
    w, momentum = START, np.zeros(DIMENSION)
    for number, cohort in enumerate(cohorts(made)):
        lr, ends = 0.05 * 0.5**number, []
        for client, steps in cohort:
            assert steps == 4
            y = w
            for _ in range(steps):
                first = gradient(client, y)
                sharp = gradient(client, y + rho * first / np.linalg.norm(first))
                y = y - lr * (alpha * sharp + (1 - alpha) * momentum)
            ends.append(y)
        momentum = (w - np.mean(ends, 0)) / (lr * 4)
        w = np.mean(ends, 0)
    np.testing.assert_allclose(made.weights, w, rtol=1e-5)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    """Oracle: the message."""
    with pytest.raises(BadInput) as error:
        run(tmp_path / "run.h5", MoFedSAM(), local=LocalTraining(epochs=1, momentum=0.5))
    assert "--local.momentum = 0.5: must be 0 with MoFedSAM" in str(error.value)
