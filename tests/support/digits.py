"""Federations on a few digits, for tests that train the same clients in plain PyTorch beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import Arrays, Dataset, Digits, Dirichlet, Progress
from fedmpi.models import Model
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import InOrder
from tests.support.experiments import read, run

SHAPE = (1, 8, 8)
DIGITS = read(Digits())
#: Thirty samples a client, in order.
EACH = 30


class Few(Dataset):
    """The first digits, several times over.

    Args:
        samples: how many of them.
        copies: how often.
    """

    classes, mean, std = Digits.classes, Digits.mean, Digits.std

    def __init__(self, samples: int, copies: int = 1) -> None:
        self.samples = samples
        self.copies = copies

    def read(self, progress: Progress) -> Arrays:
        x, y = DIGITS.train_x[: self.samples], DIGITS.train_y[: self.samples]
        return Arrays(np.tile(x, (self.copies, 1, 1, 1)), np.tile(y, self.copies), DIGITS.test_x, DIGITS.test_y)


def in_order(path: Path, algorithm: Algorithm, model: Model, clients: int, local: LocalTraining) -> results.Run:
    """Three rounds with all of a few clients, of whom each has the next thirty digits."""
    return run(
        path,
        algorithm,
        dataset=Few(EACH * clients),
        partition=InOrder(),
        model=model,
        clients=clients,
        rounds=3,
        local=local,
    )


def beside_fedavg(
    folder: Path, algorithm: Algorithm, model: Model, vectorize: Any
) -> tuple[results.Run, results.Run]:
    """A method and FedAvg, whose models at the server must be the same bits, and their traffic alike."""
    settings: dict[str, Any] = {
        "model": model,
        "dataset": Few(150),
        "partition": Dirichlet(0.3),
        "clients": 5,
        "rounds": 3,
        "local": LocalTraining(epochs=1, vectorize=vectorize),
    }
    made, plain = run(folder / "made.h5", algorithm, **settings), run(folder / "plain.h5", FedAvg(), **settings)
    assert made.weights_sha256 == plain.weights_sha256
    for column in ("train_loss", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(made.rounds[column], plain.rounds[column])
    return made, plain
