"""Rounds on the nodes of a job, with clients that sleep: mpirun ... python -m benchmarks.over_nodes SIZE...

A round is a broadcast, the clients of each rank, whose vectors are added to a mean, the mean, and a sum of some
numbers per client, as in federated averaging. A client sleeps instead of computing, so that ranks which share a core
do not slow each other down. Prints one line of JSON per size: seconds of the rounds, and of their broadcasts and
means, with the same clients on any number of ranks (`strong`), and with as many per rank (`weak`).
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedmpi.federation.mean import WeightedMean
from fedmpi.mpi.world import World
from fedmpi.training.block import Block

#: Clients of a round in all, clients per rank, and seconds that a client sleeps.
STRONG, WEAK, ASLEEP = 48, 6, 0.02
ROUNDS, BOOKS = 6, 6


def play(world: World, size: int, clients: int) -> list[tuple[float, float]]:
    """Seconds of each round, and of its broadcast and mean, on this rank; the first round is left out."""
    vector, one = torch.randn(1, size) * 0.01, Block(np.array([0]), np.array([1]), np.array([1]))
    mine = range(world.rank - 1, clients, len(world.workers)) if world.is_worker else range(0)
    model, found = vector[0], []
    for _ in range(ROUNDS + 1):
        world.meet()
        began = time.perf_counter()
        world.begin_round()
        world.broadcast(model.numpy() if world.is_server else np.empty(size, np.float32))
        received = time.perf_counter()
        mean = WeightedMean(world, size, size, clients, None, torch.device("cpu"))
        for _ in mine:
            time.sleep(ASLEEP)
            mean.add(vector, one)
        trained = np.array([time.perf_counter() - received])
        model = mean.reduce()
        world.sum(np.zeros(BOOKS * clients))
        seconds = time.perf_counter() - began
        longest = max(world.comm.allgather(float(trained[0])))
        found.append((seconds, seconds - longest))
    return found[1:]


def main() -> None:
    torch.set_num_threads(1)
    world = World()
    for size in map(int, sys.argv[1:]):
        cases = {"strong": STRONG, "weak": WEAK * len(world.workers)}
        found = {name: play(world, size, clients) for name, clients in cases.items()}
        if world.is_server:
            print(json.dumps({"size": size, "workers": len(world.workers), **found}), flush=True)


if __name__ == "__main__":
    main()
