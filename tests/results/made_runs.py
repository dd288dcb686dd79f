"""A run with known numbers, for the tests of the results file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpi.results import Results

CONFIG = """\
algorithm:
  class_path: fedmpi.algorithms.fedprox.FedProx
  init_args:
    mu: {mu}
dataset:
  class_path: fedmpi.data.digits.Digits
  init_args:
    root: null
partition:
  class_path: fedmpi.data.partitions.Permuted
  init_args:
    over:
      class_path: fedmpi.data.partitions.Dirichlet
      init_args:
        alpha: 0.3
model: Linear
clients: 20
cohort: 4
rounds: 20
local:
  epochs: 2
  lr: 1.0e-05
seed: {seed}
output: {path}
"""

NAMES = ["weight", "bias"]
SHAPES = [(3, 2), (3,)]
OFFSETS = [0, 6]


def weights(scale: float = 1.0) -> NDArray[np.float32]:
    """[9], the canonical weights of a torch.nn.Linear(2, 3)."""
    return scale * np.arange(9, dtype=np.float32)


def started(
    path: Path, mu: float = 0.01, overwrite: bool = False, seed: int = 7, changes: Mapping[str, str] | None = None
) -> Results:
    """A run before its first round and its first write; `changes` replace texts in its configuration."""
    config = CONFIG.format(mu=mu, path=path, seed=seed)
    for old, new in (changes or {}).items():
        assert old in config
        config = config.replace(old, new)
    attributes = {
        "config": config,
        "algorithm": "FedProx",
        "dataset": "Digits",
        "model": "Linear",
        "seed": seed,
    }
    environment = {"ranks": 3, "hosts": ["ä", "b"], "slurm_job": None}
    results = Results(path, attributes, environment, overwrite=overwrite)
    results.set_initial({"test_loss": 2.5, "test_accuracy": 0.1})
    results.set_partition(np.ones((20, 10), dtype=np.int32), np.full(20, 10))
    results.set_model(NAMES, SHAPES, OFFSETS, weights)
    return results


def add_round(results: Results, round: int, clock: bool = False) -> None:
    """A round of 4 clients on 2 ranks in 2 s; even rounds are evaluated, accuracy is 0.04 times the round.

    By a virtual clock, 2.5 s with 7 clients asked, of whom 1 dropped out and 2 were late.
    """
    row: dict[str, float] = {
        "round": round,
        "seconds": 2.0,
        "train_loss": 1 / round,
        "train_seconds": 1.0,
        "communication_seconds": 0.1,
        "evaluation_seconds": 0.4,
        "bytes_up": 1_000_000,
        "bytes_down": 3_000_000,
    }
    if clock:
        row |= {"virtual_seconds": 2.5, "selected": 7, "dropped": 1, "late": 2}
    if round % 2 == 0:
        row |= {"test_loss": 2 / round, "test_accuracy": 0.04 * round}
        columns = {"per_class_accuracy": np.linspace(0, 1, 10), "client_accuracy": np.full(20, 0.5)}
        results.add_evaluation(round, columns)
        results.set_confusion(round, np.diag(np.arange(10)) + np.eye(10, k=1, dtype=np.int64))
    results.add_round(row)
    results.add_clients({"round": np.full(4, round), "client": np.arange(4), "loss": np.ones(4, np.float32)})
    results.add_ranks(
        {
            "round": [round] * 2,
            "rank": [1, 2],
            "busy_seconds": [1.0, 1.5],
            "wait_seconds": [0.9, 0.4],
            "clients": [2, 2],
        }
    )


def finished(
    path: Path,
    rounds: int = 20,
    mu: float = 0.01,
    clock: bool = False,
    seed: int = 7,
    changes: Mapping[str, str] | None = None,
) -> Path:
    results = started(path, mu, seed=seed, changes=changes)
    for round in range(1, rounds + 1):
        add_round(results, round, clock)
    results.finish("finished")
    return path
