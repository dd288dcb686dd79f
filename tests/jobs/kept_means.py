"""Rounds in which the server keeps some means and lets others go: python kept_means.py FOLDER RANKS_A_NODE...

FOLDER/RANKS_A_NODE-RANK.npz: what that rank received.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmpi.federation.mean import WeightedMean
from fedmpi.mpi.world import World
from fedmpi.training.block import Block

SIZE, ROUNDS, FIRST_KEPT = 50_000, 8, 2


def look(world: World) -> dict[str, Any]:
    one = Block(np.array([world.rank]), np.array([1]), np.array([1]))
    weights, kept, received = torch.zeros(SIZE), [], []
    for round in range(ROUNDS):
        world.begin_round()
        start = torch.from_numpy(world.broadcast(weights.numpy() if world.is_server else np.empty(SIZE, np.float32)))
        # Half of it is sent again, from the middle of the same memory.
        half = world.broadcast(weights[SIZE // 2 :].numpy() if world.is_server else np.empty(SIZE // 2, np.float32))
        assert np.array_equal(half, start[SIZE // 2 :].numpy())
        mean = WeightedMean(world, SIZE, SIZE, len(world.workers), None, torch.device("cpu"))
        if world.is_worker:
            mean.add(start[None] + world.rank, one)
        weights = mean.reduce()
        received.append(float(start.mean()))
        if world.is_server and round == FIRST_KEPT:
            kept.append(weights[10:20])  # a part keeps the whole
    places = len(world._means[0].formed)
    held = kept[0].numpy() if kept else np.empty(0)
    return {"received": received, "places": places, "kept": held}


for ranks_a_node in sys.argv[2:]:
    world = World(ranks_a_node=int(ranks_a_node))
    np.savez(Path(sys.argv[1], f"{ranks_a_node}-{world.rank}.npz"), **look(world))
