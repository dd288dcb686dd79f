"""Centralized: FedAvg with one client who has everything; as much work as the cohorts'; the same evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.algorithms.centralized import Centralized
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.data import Digits, Dirichlet, Permuted, make_split
from fedmpi.errors import BadInput
from fedmpi.models import LeNet
from fedmpi.policies import RoundRobin, Uniform
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.support.digits import Few
from tests.support.experiments import SEED, network, normalised, plain_training, read, run, state, tensors

SHAPE = (1, 8, 8)
DIGITS = read(Digits())
TRAIN = len(DIGITS.train_y)


@pytest.mark.parametrize("vectorize", ["off", 2])
def test_one_client_is_alone_pooled_and_federated_alike(vectorize: Any, tmp_path: Path) -> None:
    """Oracle: LocalOnly's model, Centralized and FedAvg, bit for bit, with statistics and memory of their own."""
    local = LocalTraining(epochs=2, momentum=0.9, weight_decay=1e-3, batch_size=50, vectorize=vectorize)
    settings: dict[str, Any] = {"clients": 1, "model": LeNet(), "dataset": Few(220), "rounds": 2, "local": local}
    alone = LocalOnly()
    runs = [
        run(tmp_path / f"{type(algorithm).__name__}.h5", algorithm, **settings)
        for algorithm in (FedAvg(), Centralized(), alone)
    ]
    assert runs[0].weights_sha256 == runs[1].weights_sha256
    own = Layout.of(network(LeNet(), SHAPE, 10)).canonical(alone.own.rows[0])
    np.testing.assert_array_equal(own.numpy(), runs[0].weights)
    for column in ("train_loss", "test_loss", "test_accuracy"):
        for other in runs[1:]:
            np.testing.assert_array_equal(other.rounds[column], runs[0].rounds[column])
    assert runs[0].initial == runs[1].initial == runs[2].initial


def test_everybody_at_once_is_plain_training(tmp_path: Path) -> None:
    """Oracle: torch.optim.SGD over all samples, with a new optimizer each round; to 1e-4 of the way."""
    local = LocalTraining(epochs=1, batch_size=50, lr=0.05, momentum=0.9)
    made = run(tmp_path / "run.h5", Centralized(), clients=5, rounds=2, local=local, model=LeNet(norm="group"))
    plain = network(LeNet(norm="group"), SHAPE, 10)
    start = torch.cat([tensor.flatten().clone() for tensor in state(plain).values()])
    x, y = normalised(DIGITS.train_x, Digits()), torch.from_numpy(DIGITS.train_y)
    losses = [plain_training(plain, x, y, local, round=round) for round in (1, 2)]
    there = torch.cat([tensor.flatten() for tensor in state(plain).values()])
    here = torch.cat([tensors(made)[name].flatten() for name in state(plain)])
    assert (here - there).norm() < 1e-4 * (there - start).norm()
    np.testing.assert_allclose(made.rounds["train_loss"], losses, rtol=1e-3)


def test_a_round_is_the_work_of_its_cohort(tmp_path: Path) -> None:
    """Oracle: passes over as many samples as FedAvg's cohort holds, to a batch a pass; as many steps."""
    settings: dict[str, Any] = {
        "partition": Dirichlet(0.3),
        "clients": 7,
        "cohort": 3,
        "sampler": Uniform(),
        "rounds": 4,
    }
    by_passes, by_steps = LocalTraining(epochs=3, batch_size=20), LocalTraining(steps=5, batch_size=20)
    fedavg, passes = (
        run(tmp_path / f"{type(a).__name__}.h5", a, local=by_passes, **settings) for a in (FedAvg(), Centralized())
    )
    held = fedavg.clients["samples"].reshape(4, 3).sum(1)
    assert len(set(held)) > 1
    assert (np.abs(passes.clients["steps"] * 20 - 3 * held) <= 3 * 20).all()
    assert set(passes.clients["client"]) == {0}
    assert set(passes.clients["samples"]) == {TRAIN}
    steps = run(tmp_path / "steps.h5", Centralized(), local=by_steps, **settings)
    assert steps.clients["steps"].tolist() == [3 * 5] * 4


def test_part_of_the_samples_is_so_many_steps(tmp_path: Path) -> None:
    """Oracle: FedAvg with one client that does the steps of 2 of 7 equal clients, bit for bit, in every round."""
    assert TRAIN % 7 == 0
    settings: dict[str, Any] = {"model": LeNet(), "rounds": 3}
    steps = round(2 * np.ceil(TRAIN / 40) * 2 / 7)
    assert steps * 40 < TRAIN
    pooled = run(
        tmp_path / "pooled.h5",
        Centralized(),
        sampler=RoundRobin(),
        clients=7,
        cohort=2,
        local=LocalTraining(epochs=2, batch_size=40),
        **settings,
    )
    one = run(tmp_path / "one.h5", clients=1, local=LocalTraining(steps=steps, batch_size=40), **settings)
    assert pooled.weights_sha256 == one.weights_sha256
    np.testing.assert_array_equal(pooled.rounds["test_loss"], one.rounds["test_loss"])


def test_the_evaluation_is_the_federations(tmp_path: Path) -> None:
    """Oracle: FedAvg's split; whole numbers of correct samples on its clients' shards, which add up."""
    settings: dict[str, Any] = {"partition": Dirichlet(0.3), "clients": 7, "local": LocalTraining(batch_size=50)}
    fedavg, pooled = (run(tmp_path / f"{type(a).__name__}.h5", a, **settings) for a in (FedAvg(), Centralized()))
    for column, values in fedavg.partition.items():
        np.testing.assert_array_equal(pooled.partition[column], values)
    assert pooled.initial == fedavg.initial
    split = make_split(Dirichlet(0.3), DIGITS.train_y, DIGITS.test_y, 10, 7, SEED)
    correct = pooled.evaluation["client_accuracy"] * [len(shard) for shard in split.test]
    np.testing.assert_allclose(correct, correct.round(), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(correct.round().sum(1) / len(DIGITS.test_y), pooled.rounds["test_accuracy"])


def test_views_that_differ_cannot_be_pooled(tmp_path: Path) -> None:
    """Oracle: the message, and no file."""
    with pytest.raises(BadInput, match=r"algorithm = Centralized: cannot pool .* as with Permuted"):
        run(tmp_path / "run.h5", Centralized(), partition=Permuted())
    assert not (tmp_path / "run.h5").exists()
