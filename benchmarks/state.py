"""Memory of what clients keep: mpirun -n 3 python -m benchmarks.state 10000 100000 (clients, numbers each).

All clients take part twice, a hundred per round and each time on another rank, in blocks of four. Prints by how many
bytes the ranks that train have grown, and how many bytes the clients' vectors have.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedmpi.federation.client_state import StateKeeper
from fedmpi.mpi.world import World
from fedmpi.training.block import Block

COHORT, AT_ONCE = 100, 4


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(clients: int, size: int) -> None:
    world = World()
    keeper = StateKeeper(world, clients)
    before = resident()
    state = keeper.create("state", torch.zeros(size), torch.device("cpu"))
    workers = np.array(world.workers)
    for visit in range(2):
        for cohort in np.split(np.arange(clients), range(COHORT, clients, COHORT)):
            ranks = workers[(cohort + visit) % len(workers)]
            keeper.gather(cohort, ranks)
            mine = cohort[ranks == world.rank]
            for first in range(0, len(mine), AT_ONCE):
                some = mine[first : first + AT_ONCE]
                block = Block(some, np.ones_like(some), np.ones_like(some))
                assert (state[block] == visit).all()
                state[block] = state[block] + 1
    grown = np.array([resident() - before if world.is_worker else 0], dtype=np.float64)
    world.sum(grown)
    if world.is_server:
        print(int(grown[0]), clients * size * 4, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
