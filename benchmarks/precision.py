"""What bfloat16 saves, in one job: mpirun -n 3 python -m benchmarks.precision A 4 (workload, pairs).

Rounds with `--local.precision bf16` and in float32 in turn, with the same clients. Prints the seconds of both, for
every pair.
"""

from __future__ import annotations

import sys

from benchmarks.alternating import pairs_of_rounds
from benchmarks.workloads import TRAINING
from fedmpi.mpi.world import World

#: Those with convolutions. The network of D is so small that the time of its operations matters little.
WORKLOADS = ("A", "B", "C", "E")


def main(rung: str, pairs: int) -> None:
    world = World()
    options = TRAINING[rung].options
    for ours, plain in pairs_of_rounds(world, f"{options} --local.precision bf16", options, pairs):
        if world.is_server:
            print(ours.row["seconds"], plain.row["seconds"], file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
