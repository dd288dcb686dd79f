"""LocalOnly: every client as if there were no others; nothing sent; accuracies on own shards and on everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.algorithms.localonly import LocalOnly
from fedmpi.data import Digits, Dirichlet, make_split
from fedmpi.models import LeNet
from fedmpi.models.mlp import LogisticRegression
from fedmpi.policies import Uniform
from fedmpi.training.layout import Layout
from fedmpi.training.settings import LocalTraining
from tests.support.experiments import SEED, network, normalised, plain_training, read, run

SHAPE, CLIENTS = (1, 8, 8), 5
DIGITS = read(Digits())
SPLIT = make_split(Dirichlet(0.3), DIGITS.train_y, DIGITS.test_y, 10, CLIENTS, SEED)
SETTINGS: dict[str, Any] = {
    "partition": Dirichlet(0.3),
    "clients": CLIENTS,
    "cohort": 2,
    "sampler": Uniform(),
    "rounds": 3,
}


def test_every_client_trains_for_itself(tmp_path: Path) -> None:
    """Oracle: torch.optim.SGD on a client's own samples in its own rounds, to 1e-4 of the way; its accuracies."""
    local, model, alone = LocalTraining(epochs=2, batch_size=25, momentum=0.9, lr=0.02), LeNet(), LocalOnly()
    made = run(tmp_path / "run.h5", alone, model=model, local=local, **SETTINGS)
    rounds = {c: made.clients["round"][made.clients["client"] == c].tolist() for c in range(CLIENTS)}
    assert sorted(map(len, rounds.values())) != [1] * CLIENTS, "somebody has continued"
    x, y = normalised(DIGITS.train_x, Digits()), torch.from_numpy(DIGITS.train_y)
    test_x, test_y = normalised(DIGITS.test_x, Digits()), DIGITS.test_y
    on_shard, on_all = [], []
    for client, samples in enumerate(SPLIT.train):
        plain = network(model, SHAPE, 10)
        start = torch.cat([p.detach().flatten().clone() for p in plain.parameters()])
        for round in rounds[client]:
            plain_training(plain, x[samples], y[samples], local, client, round)
        there = torch.cat([p.detach().flatten() for p in plain.parameters()])
        if client in alone.own.rows:
            own = Layout.of(plain).views(alone.own.rows[client])
            here = torch.cat([own[name].flatten() for name, _ in plain.named_parameters()])
            assert (here - there).norm() < 1e-4 * (there - start).norm()
        else:
            assert not rounds[client]
        with torch.inference_mode():
            hits = plain.eval()(test_x).argmax(1).numpy() == test_y
        on_shard.append(hits[SPLIT.test[client]].mean())
        on_all.append(hits.mean())
    np.testing.assert_allclose(made.evaluation["client_accuracy"][-1], on_shard, atol=0.03)
    sizes = [len(shard) for shard in SPLIT.test]
    assert made.rounds["test_accuracy"][-1] == pytest.approx(np.average(on_shard, weights=sizes), abs=0.006)
    assert made.rounds["client_accuracy_mean"][-1] == pytest.approx(np.mean(on_shard), abs=0.01)
    matched, spread = made.rounds["global_matched_accuracy"], made.rounds["global_matched_accuracy_std"]
    assert matched[-1] == pytest.approx(np.average(on_all, weights=made.partition["samples"]), abs=0.006)
    assert spread[-1] == pytest.approx(np.std(on_all), abs=0.006)
    assert matched[-1] < made.rounds["test_accuracy"][-1] - 0.1, "on classes that a client never saw, it is lost"
    assert np.isnan(matched[:-1]).all()


def test_nothing_is_sent(tmp_path: Path) -> None:
    """Oracle: no bytes; the weights that everyone started from."""
    made = run(tmp_path / "run.h5", LocalOnly(), **SETTINGS)
    assert made.rounds["bytes_up"].tolist() == made.rounds["bytes_down"].tolist() == [0, 0, 0]
    for name, tensor in network(LogisticRegression(), SHAPE, 10).state_dict().items():
        np.testing.assert_array_equal(made.state_dict()[name], tensor.numpy())
