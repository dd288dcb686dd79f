"""A round in which nothing is trained: mpirun -n 4 python -m benchmarks.null_round.

For each model size: fedmpi's broadcast and mean, compared with plain MPI_Bcast and MPI_Reduce of float32 vectors of
that size. The plain operations do less: fedmpi's sums have 64 bits and are exact. Prints one line per size: the
number of parameters, and the milliseconds of both. `Idle` measures what else the engine does in a round.
"""

import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.federation.federation import Federation
from fedmpi.federation.mean import WeightedMean
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort
from fedmpi.training.block import Block


class Idle(FedAvg):
    """FedAvg with clients that have nothing to do. The time of a round is the engine's own."""

    def round(self, fed: Federation, cohort: Cohort) -> None:
        fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort)
        for _ in fed.my_clients(cohort):
            pass
        self.weights = mean.reduce(empty=self.weights)


SIZES = (25_000, 415_000, 1_660_000, 11_170_000)
CPU = torch.device("cpu")


def median_ms(world: World, times: int, run: Callable[[], float]) -> float:
    found = []
    for _ in range(times):
        world.meet()
        found.append(run())
    return 1e3 * float(np.median(found[times // 4 :]))


def exchange(world: World, size: int) -> tuple[float, float]:
    """Milliseconds of broadcast and mean of so many parameters: as fedmpi does them, and by MPI alone."""
    vector, one = torch.randn(size) * 0.01, Block(np.array([0]), np.array([1]), np.array([1]))
    received, summed = np.empty(size, np.float32), np.empty(size, np.float32)
    model = vector  # then the last mean, as in FedAvg

    def ours() -> float:
        nonlocal model
        world.begin_round()
        world.meet()
        began = time.perf_counter()
        world.broadcast(model.numpy() if world.is_server else received)
        took = time.perf_counter() - began
        mean = WeightedMean(world, size, size, len(world.workers), None, CPU)
        if world.is_worker:
            mean.add(vector[None], one)
        world.meet()
        began = time.perf_counter()
        model = mean.reduce()
        return took + time.perf_counter() - began

    def plain() -> float:
        began = time.perf_counter()
        world.comm.Bcast(received, root=0)
        world.comm.Reduce(vector.numpy(), summed, root=0)
        return time.perf_counter() - began

    times = 12 if size > 5_000_000 else 40
    return median_ms(world, times, ours), median_ms(world, times, plain)


def main() -> None:
    torch.set_num_threads(1)
    world = World()
    for size in SIZES:
        ours, plain = exchange(world, size)
        if world.is_server:
            print(size, ours, plain, flush=True)


if __name__ == "__main__":
    main()
