"""Every client's own model on its own shard of the test set: by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedmpi.data import Dirichlet, Permuted, make_split
from fedmpi.models import LeNet
from fedmpi.policies import Uniform
from fedmpi.training.flat import FlatModel
from fedmpi.training.settings import LocalTraining
from tests.algorithms.test_ifca import DIGITS, SHAPE, seen_by
from tests.jobs.methods import Halfway
from tests.support.experiments import CPU, SEED, network, run

CLIENTS = 7
PARTITION = Permuted(Dirichlet(0.3))


def test_by_hand(tmp_path: Path) -> None:
    """Oracle: each client's network in PyTorch, on its shard, with its pixels in its order; NumPy's statistics."""
    algorithm, local = Halfway(), LocalTraining(epochs=1)
    parts = {"model": LeNet(), "partition": PARTITION, "sampler": Uniform(), "local": local}
    made = run(tmp_path / "run.h5", algorithm, **parts, clients=CLIENTS, cohort=3, rounds=3)
    split = make_split(PARTITION, DIGITS.train_y, DIGITS.test_y, 10, CLIENTS, SEED)
    model = FlatModel(network(LeNet(), SHAPE, 10), CPU)
    model.module.eval()
    weights = model.layout.from_canonical(torch.from_numpy(made.weights))
    correct, loss = np.zeros(CLIENTS), 0.0
    sizes = np.array([len(shard) for shard in split.test])
    assert sizes.min() > 0
    assert 0 < len(algorithm.last.rows) < CLIENTS
    for client, shard in enumerate(split.test):
        last = algorithm.last.rows.get(client, algorithm.last.initial)
        model.load((weights + last) / 2)
        x, y = seen_by(split, client, DIGITS.test_x[shard]), torch.from_numpy(DIGITS.test_y[shard])
        with torch.inference_mode():
            logits = model.module(x)
        correct[client] = (logits.argmax(1) == y).sum().item()
        loss += cross_entropy(logits, y, reduction="sum").item()
    accuracy = correct / sizes
    assert accuracy.std() > 0.05
    np.testing.assert_array_equal(made.evaluation["client_accuracy"][-1], accuracy)
    last_row = {name: column[-1] for name, column in made.rounds.items()}
    assert last_row["test_accuracy"] == correct.sum() / sizes.sum()
    assert last_row["test_loss"] == pytest.approx(loss / sizes.sum(), rel=1e-5)
    assert last_row["client_accuracy_mean"] == pytest.approx(accuracy.mean(), rel=1e-12)
    assert last_row["client_accuracy_std"] == pytest.approx(accuracy.std(), rel=1e-12)
    for percent in (10, 50, 90):
        assert last_row[f"client_accuracy_p{percent}"] == pytest.approx(np.percentile(accuracy, percent), rel=1e-12)
    assert last_row["clients_trained"] == len(algorithm.last.rows) == len(set(made.clients["client"]))
