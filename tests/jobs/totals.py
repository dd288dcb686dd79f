"""Sums of terms that are dealt out to the ranks: mpirun -n 5 python totals.py FOLDER.

FOLDER/WORLD-RANK.npz holds what a rank got of each way of dealing, and of what rank 0 told, in worlds of the first
ranks: 1, 2, 3 and 5 of one node, and 5 of three nodes.
"""

import sys
from functools import cache

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.federation.mean import total
from fedmpi.mpi.world import World

COUNT, SHAPES = 13, [(50, 7), (11,), (3,)]
#: name -> ranks, and how many share a node.
WORLDS = {"1": (1, None), "2": (2, None), "3": (3, None), "5": (5, None), "5 on nodes of 2": (5, 2)}


@cache
def terms() -> list[tuple[torch.Tensor, ...]]:
    """Of three kinds, of scales far apart; the last is large but for a term that has a NaN."""
    rng = np.random.default_rng(0)
    scales = (1e-9, 1.0, 1e30)
    found = []
    for number in range(COUNT):
        spread = 10.0 ** rng.uniform(-6, 0)
        kinds = [scale * spread * rng.standard_normal(shape) for scale, shape in zip(scales, SHAPES, strict=True)]
        if number == 5:
            kinds[2][1] = np.nan
        found.append(tuple(torch.from_numpy(kind.astype(np.float32)) for kind in kinds))
    return found


def look(world: World) -> dict[str, np.ndarray]:
    me, ranks = world.rank, world.size
    shuffled = np.random.default_rng(2).permutation(COUNT).tolist()
    deals = {
        "dealt": list(range(me, COUNT, ranks)),
        "backwards": list(range(me, COUNT, ranks))[::-1],
        "shuffled": shuffled[me::ranks],
        "one_has_all": shuffled if me == ranks - 1 else [],
        "nobody": [],
    }
    seen: dict[str, np.ndarray] = {}
    for name, mine in deals.items():
        for kind, result in enumerate(total(world, [terms()[number] for number in mine], SHAPES)):
            seen[f"{name} {kind}"] = result.numpy()
    for number, size in enumerate((3, 1000, 7)):
        told = world.tell(np.arange(size, dtype=np.float32) + (number if world.is_server else 99)).copy()
        buffer = np.ones(size)
        world.sum(buffer)  # which shares its memory
        seen[f"told {number}"], seen[f"summed {number}"] = told, buffer
    return seen


def main(folder: str) -> None:
    everyone = MPI.COMM_WORLD
    for name, (ranks, ranks_a_node) in WORLDS.items():
        first = everyone.Split(0 if everyone.Get_rank() < ranks else MPI.UNDEFINED)
        if first != MPI.COMM_NULL:
            seen = look(World(MPI.Intracomm(first), ranks_a_node))
            np.savez(f"{folder}/{name}-{first.Get_rank()}.npz", **seen)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1])
