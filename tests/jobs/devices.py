"""Which GPU each rank takes, in several jobs of five ranks; GPUs are make-believe: python devices.py FOLDER.

FOLDER/RANK.json: for each job the GPU, by the name of its node's list, or the error; and what the doctor says of
ranks that are divided over nodes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from mpi4py import MPI

from fedmpi import doctor
from fedmpi.errors import BadInput
from fedmpi.mpi.devices import DeviceChoice, pick_device
from fedmpi.mpi.world import World, mpi_version

#: The GPUs that each rank sees, whether ranks go to two nodes in turn, what was asked for, and whether the server
#: trains, too.
JOBS: dict[str, tuple[list[str], bool, DeviceChoice, bool]] = {
    "all to be seen by all": (["a b c d"] * 5, False, "auto", False),
    "one a task": (["a", "b", "c", "d", "e"], False, "auto", False),
    "two a task": (["a b", "c d", "e f", "g h", "i j"], False, "auto", False),
    "some of them": (["GPU-5f2e GPU-91aa"] * 5, False, "cuda", False),
    "fewer than ranks": (["a b c"] * 5, False, "auto", False),
    "none": ([""] * 5, False, "auto", False),
    "none, and asked for": ([""] * 5, False, "cuda", False),
    "none on one node": (["a b", "", "a b", "", "a b"], True, "auto", False),
    "none on one node, and asked for": (["a b", "", "a b", "", "a b"], True, "cuda", False),
    "not wanted": (["a b c d"] * 5, False, "cpu", False),
    "ranks in turn on two nodes": (["a b", "A B", "a b", "A B", "a b"], True, "auto", False),
    "the server trains": (["a b"] * 5, False, "auto", True),
    "the server trains, in turn on two nodes": (["a b", "A B", "a b", "A B", "a b"], True, "auto", True),
}


def main(folder: Path) -> None:
    world = World()
    taken: list[str] = []
    torch.cuda.set_device = lambda device: taken.append(str(device))
    found: dict[str, object] = {}
    for name, (visible, in_turn, choice, server_too) in JOBS.items():
        seen = visible[world.rank].split()
        torch.cuda.device_count = lambda seen=seen: len(seen)  # type: ignore[misc]
        node = MPI.Intracomm(world.comm.Split(world.rank % 2 if in_turn else 0))
        place = SimpleNamespace(rank=world.rank, is_worker=world.is_worker, agreed=world.agreed, node=node)
        try:
            device = pick_device(cast(World, place), choice, server_too)
            found[name] = "cpu" if device.type == "cpu" else seen[device.index]
            assert taken[-1:] == [str(device)][: device.type == "cuda"]
        except BadInput as error:
            found[name] = str(error)
        taken.clear()
    torch.cuda.device_count = lambda: 0
    nodes = World(ranks_a_node=2)
    ranks = doctor.look(nodes)
    found["told"] = list(doctor.tell(ranks, doctor.measure(nodes), mpi_version(), [], []))
    found["problems"] = list(doctor.problems(ranks, 1000, folder, None))
    (folder / f"{world.rank}.json").write_text(json.dumps(found))


main(Path(sys.argv[1]))
