"""Regression by full batches is gradient descent on the normal equations: with clients' training in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.algorithms import FedAvg
from fedmpi.data import IID, Diabetes, make_split
from fedmpi.models import Model
from fedmpi.tasks import Regression
from fedmpi.training.flat import FlatModel
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import LocalWork
from tests.support.experiments import CPU, SEED, block, read, run

CLIENTS, ROUNDS, LR = 7, 30, 0.05
DATA = read(Diabetes())


class FromZero(Model):
    """A linear model without bias that starts from zero."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        network = nn.Linear(shape[0], outputs, bias=False)
        nn.init.zeros_(network.weight)
        return network


def descent(rounds: int) -> np.ndarray:
    """Gradient descent on the mean squared error of all training samples, from its normal equations, in float64."""
    x, y = DATA.train_x.astype(np.float64), DATA.train_y[:, 0].astype(np.float64)
    matrix, side = 2 * x.T @ x / len(x), 2 * x.T @ y / len(x)
    weights = np.zeros(x.shape[1])
    for _ in range(rounds):
        weights -= LR * (matrix @ weights - side)
    return weights


def test_clients_in_double_precision() -> None:
    """Each client's step by the trainer in float64, and their mean by NumPy: to 1e-10."""
    strata = Regression().strata(DATA.train_y, DATA.test_y, Diabetes())
    split = make_split(IID(), *strata, CLIENTS, SEED)
    torch.set_default_dtype(torch.float64)
    try:
        samples = Samples(DATA.train_x, DATA.train_y, None, None, CPU)
        model = FlatModel(FromZero().build((10,), 1), CPU)
        local = LocalTraining(epochs=1, batch_size=10**6, lr=LR)
        work = LocalWork(Regression(), model, samples, split.train, lambda client: None, local, SEED)
        trainer, weights, hooks = PlainTrainer(work), torch.zeros(1, 10), FedAvg()
        hooks.task = Regression()
        shares = split.samples / split.samples.sum()
        for round in range(1, ROUNDS + 1):
            trained = [
                trainer.train(block(k), weights, hooks, round, ROUNDS).weights[0].clone() for k in range(CLIENTS)
            ]
            weights = (torch.stack(trained) * torch.from_numpy(shares)[:, None]).sum(0, keepdim=True)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(weights[0].numpy(), descent(ROUNDS), rtol=0, atol=1e-10)


def test_a_run(tmp_path: Path) -> None:
    """The whole run, in float32: as near as float32 allows; and its rmse by NumPy."""
    local = LocalTraining(epochs=1, batch_size=10**6, lr=LR)
    parts: dict[str, Any] = {"dataset": Diabetes(), "model": FromZero(), "partition": IID(), "clients": CLIENTS}
    made = run(tmp_path / "run.h5", local=local, rounds=ROUNDS, **parts)
    expected = descent(ROUNDS)
    np.testing.assert_allclose(made.weights, expected, atol=1e-6)
    rmse = np.sqrt(np.square(DATA.test_x @ expected - DATA.test_y[:, 0]).mean())
    assert made.rounds["test_rmse"][-1] == pytest.approx(rmse, rel=1e-5)
