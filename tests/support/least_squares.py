"""Least squares in full batches: runs of fedmpi, and the clients' losses in closed form, in float64.

Of runs in float32 one may ask for a relative error of some 1e-5 after dozens of steps, and at a fixed point for what
rounding leaves of a step: about 1e-6.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi import results
from fedmpi.algorithms import Algorithm
from fedmpi.data import Arrays, Partition, Progress
from fedmpi.policies import All, Cohort, Pool, Weighting
from fedmpi.training.settings import LocalTraining
from tests.jobs.regression import CLIENTS, DIMENSION, EACH, InOrder, OneVector, Regression
from tests.support.experiments import read, run

START = np.arange(1.0, DIMENSION + 1)
_samples = read(Regression()).train_x.astype(np.float64).reshape(CLIENTS, EACH, DIMENSION + 1)
_a, _b = _samples[..., :-1], _samples[..., -1]
#: Client k's loss is w'A_k w / 2 - b_k'w and a constant.
HESSIANS = np.einsum("kni,knj->kij", _a, _a) / EACH
SIDES = np.einsum("kni,kn->ki", _a, _b) / EACH
#: [clients, dimension]
SOLUTIONS = np.linalg.solve(HESSIANS, SIDES[..., None])[..., 0]
#: [dimension], of the mean of the clients' losses
OPTIMUM = np.linalg.solve(HESSIANS.mean(0), SIDES.mean(0))


def gradient(client: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return HESSIANS[client] @ weights - SIDES[client]


def limit(steps: tuple[int, ...], lr: float, weights: tuple[float, ...] = (1.0,) * CLIENTS) -> NDArray[np.float64]:
    """[dimension], where steps of gradient descent by every client and means of what they changed end up.

    Args:
        weights: of the clients' changes in the mean; all alike: FedAvg.
    """
    powers = [np.linalg.matrix_power(np.eye(DIMENSION) - lr * h, n) for h, n in zip(HESSIANS, steps, strict=True)]
    pulls = np.array(weights)[:, None, None] * (np.eye(DIMENSION) - np.array(powers))
    return np.linalg.solve(pulls.sum(0), np.einsum("kij,kj->i", pulls, SOLUTIONS))


def squares(path: Path, algorithm: Algorithm, rounds: int, local: LocalTraining, **settings: Any) -> results.Run:
    """A run with the 5 clients of `Regression`, each step over all samples of a client."""
    parts: dict[str, Any] = {"dataset": Regression(), "partition": InOrder(), "model": OneVector()}
    chosen = {**parts, "clients": CLIENTS, "evaluate_every": 0, **settings}
    return run(path, algorithm, rounds=rounds, local=replace(local, batch_size=2 * EACH), **chosen)


def cohorts(made: results.Run) -> list[list[tuple[int, int]]]:
    """Of every round, who took part, and with how many steps."""
    rounds, clients, steps = (made.clients[name].astype(int) for name in ("round", "client", "steps"))
    return [list(zip(clients[rounds == r], steps[rounds == r], strict=True)) for r in range(1, rounds.max() + 1)]


class Uneven(All):
    """Every client in every round, but each does a part of the work only.

    Args:
        completed: the part, of each client.
    """

    def __init__(self, completed: tuple[float, ...]) -> None:
        self.completed = np.array(completed)

    def cohort(self, round: int, size: int, pool: Pool, weighting: Weighting, seed: int) -> Cohort:
        return replace(super().cohort(round, size, pool, weighting, seed), completed=self.completed)


class Chosen(Regression):
    """The equations of some clients, one client after another; one that stands there twice has them twice."""

    def __init__(self, clients: tuple[int, ...]) -> None:
        self.clients = clients

    def read(self, progress: Progress) -> Arrays:
        whole = super().read(progress)
        x = whole.train_x.reshape(CLIENTS, EACH, -1)[list(self.clients)].reshape(-1, DIMENSION + 1)
        return Arrays(x, np.zeros(len(x), np.int64), whole.test_x, whole.test_y)


class Sizes(Partition):
    """So many samples for each client, in order."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        return np.split(np.arange(len(labels)), np.cumsum(self.sizes)[:-1])


def doubled(path: Path, make: type[Algorithm], rounds: int, local: LocalTraining) -> list[results.Run]:
    """Runs that tell weightings apart.

    Two clients, one with its samples twice, weighted by samples; three clients, two of them alike, that count alike;
    and the first two, counted alike.
    """
    two: dict[str, Any] = {"clients": 2, "partition": Sizes((EACH, 2 * EACH))}
    runs: list[dict[str, Any]] = [{**two, "weighting": "samples"}, {"clients": 3}, two]
    return [
        squares(path / f"{number}.h5", make(), rounds, local, dataset=Chosen((0, 1, 1)), **settings)
        for number, settings in enumerate(runs)
    ]
