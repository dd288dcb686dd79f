"""How the programs that run a whole workload are started, and what their reports say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.launch import mpirun, output_of
from benchmarks.workloads import TRAINING

ROUNDS = 5  # that are measured, after one that warms up
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Program:
    """What runs a workload from start to end.

    Attributes:
        launcher: command that starts a module with two processes or threads that train, or with fluke's only one.
        module: of `benchmarks.peers`.
        package: what it needs.
        short_rounds: as ROUNDS, for small networks, whose rounds are short.
        channels_last: with images and weights of convolutions in that memory order.
    """

    launcher: list[str]
    module: str
    package: str
    short_rounds: int
    channels_last: bool = False

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    @property
    def title(self) -> str:
        # fluke is in the distribution fluke-fl.
        distribution = importlib.metadata.packages_distributions()[self.package][0]
        return f"{self.package} {importlib.metadata.version(distribution)}" + self.channels_last * ", channels_last"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FEDMPI = Program(mpirun(3), "ours", "fedmpi", 250)
PEERS = (
    Program(TORCHRUN, "pfl", "pfl", 25),
    Program(TORCHRUN, "pfl", "pfl", 25, channels_last=True),
    Program([sys.executable], "flower", "flwr", 5),
    Program([sys.executable], "flower", "flwr", 5, channels_last=True),
    Program([sys.executable], "blaze", "blazefl", 10),  # whose own code cannot read weights in channels_last order
    Program([sys.executable], "fluke", "fluke", 5),
    Program([sys.executable], "fluke", "fluke", 5, channels_last=True),
)


def course(program: Program, rung: str, rounds: int | None = None) -> tuple[float, NDArray[np.float64]]:
    """Run a program on a workload.

    Args:
        rounds: that are measured, after one that warms up. null: as many as the workload and the program ask for.

    Returns:
        Clients a second, the median of the rounds; the model's distance from its start, by round.
    """
    measured = rounds or (program.short_rounds if TRAINING[rung].vectorised else ROUNDS)
    command = [*program.launcher, "-m", f"benchmarks.peers.{program.module}", rung, str(1 + measured)]
    lines = output_of(command + program.channels_last * ["--channels_last"], ENVIRONMENT).splitlines()
    reports = [[float(word) for word in line.split()[1:]] for line in lines if line.startswith("round ")]
    seconds, clients, moved = np.array(reports).T
    return float(np.median(clients[1:] / seconds[1:])), moved


def same_work(moved: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    """Whether models have moved about as far after the last round that both have, by their distances by round."""
    common = min(len(moved), len(expected)) - 1
    return bool(0.5 < moved[common] / expected[common] < 2)
