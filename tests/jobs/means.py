"""The same 64 vectors averaged in several groupings over the ranks: python means.py FOLDER.

FOLDER/RANK.npz holds the mean of each grouping, if this rank could read it, and what it saw otherwise.
"""

import sys
from functools import cache

import numpy as np
import torch

from fedmpi.federation.mean import WeightedMean
from fedmpi.mpi import ascent, shared_mean
from fedmpi.mpi.world import World
from fedmpi.training.block import Block

COUNT, SIZE, PARAMETERS, CANCELLING = 64, 100_000, 90_000, 10_000
LARGE = 50_000, 51_000


@cache
def vectors() -> torch.Tensor:
    """[64, 100,000], of which the last tenth are buffers; in the first tenth, clients k and k + 32 nearly cancel.

    There the mean is so small that a float32 shows the rounding errors of sums in float64. Of some clients, a
    thousand parameters and the last hundred buffers have all magnitudes up to 1e37.
    """
    rng = np.random.default_rng(0)
    values = rng.standard_normal((COUNT, SIZE), dtype=np.float32)
    values[:, PARAMETERS:] *= 1e5
    values[32:, :CANCELLING] = values[32:, :CANCELLING] * np.float32(1e-6) - values[:32, :CANCELLING]
    for part in (slice(*LARGE), slice(-100, None)):
        values[::3, part] *= (10.0 ** rng.uniform(0, 32, values[::3, part].shape)).astype(np.float32)
    return torch.from_numpy(values)


def masses() -> list[int]:
    return 2 * np.random.default_rng(1).integers(1, 2000, COUNT // 2).tolist()


def mean_of(world: World, clients: list[int], at_once: int = 1) -> torch.Tensor:
    """The mean of all 64, of which this rank adds `clients`, in this order, so many in a block."""
    values, mass = vectors(), masses()
    mean = WeightedMean(world, PARAMETERS, SIZE, sum(mass), None, torch.device("cpu"))
    for start in range(0, len(clients), at_once):
        some = clients[start : start + at_once]
        mean.add(values[some], Block(np.array(some), np.ones(len(some), int), np.array([mass[k] for k in some])))
    return mean.reduce()


def main(folder: str) -> None:
    world, two_nodes, four_nodes = World(), World(ranks_a_node=2), World(ranks_a_node=1)
    me, ranks = world.rank, world.size
    in_turn = list(range(me, COUNT, ranks))
    shuffled = np.random.default_rng(2).permutation(COUNT).tolist()
    groupings = {
        "dealt": in_turn,
        "backwards": in_turn[::-1],
        "in_a_row": np.array_split(np.arange(COUNT), ranks)[me].tolist(),
        "shuffled": shuffled[me::ranks],
        "one_has_all": shuffled if me == ranks - 1 else [],
        "one_of_a_node": shuffled if me == ranks - 1 else [],
        "two_nodes": in_turn,
        "four_nodes": in_turn,
        "many_blocks": in_turn,
        "many_blocks_of_one": shuffled if me == ranks - 1 else [],
    }
    worlds = {"one_of_a_node": two_nodes, "two_nodes": two_nodes, "four_nodes": four_nodes}
    seen: dict[str, np.ndarray] = {}
    for name, clients in groupings.items():
        if name == "many_blocks":  # along a chain of nodes, which have memory for three blocks at a time
            shared_mean.MOST_ELEMENTS, ascent.INBOX_BYTES = 1000, 3 * 8 * 1000
            worlds |= dict.fromkeys(("many_blocks", "many_blocks_of_one"), World(ranks_a_node=1))
        mean = mean_of(worlds.get(name, world), clients)
        seen[f"{name} device"] = np.array(mean.device.type)
        seen[f"{name} shape"] = np.array(mean.shape)
        if world.is_server:
            seen[name] = mean.numpy()
    if not world.is_server:
        moved = torch.where(mean > 0, 2 * mean + torch.zeros(1, device="meta"), mean)  # arithmetic of a server
        seen["arithmetic"] = np.array(moved.shape)
        try:
            mean.sum().item()
        except RuntimeError as error:
            seen["reading"] = np.array(str(error))
    np.savez(f"{folder}/{me}.npz", **seen)  # type: ignore[arg-type]  # no array is called allow_pickle


if __name__ == "__main__":
    main(sys.argv[1])
