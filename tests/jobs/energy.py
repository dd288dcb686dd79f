"""An experiment on nodes of two ranks each, whose counters of energy are files: python energy.py FOLDER.

FOLDER/N has the counters of node N, as /sys/class/powercap would; a node without a folder has none. Each reading adds
a joule to the counter.
"""

import sys
from pathlib import Path

from fedmpi.experiment.command_line import parse
from fedmpi.federation import energy
from fedmpi.mpi.world import World

folder = Path(sys.argv[1])
world = World(ranks_a_node=2)
energy.POWERCAP = folder / str(world.node_of[world.rank])


def count(file: Path) -> int:
    counted = int(file.read_text()) + 1_000_000
    file.write_text(str(counted))
    return counted


energy._count = count
options = "--clients 4 --cohort 4 --rounds 2 --local.steps 1 --model LogisticRegression"
experiment, config = parse([*options.split(), "--output", f"{folder}/run.h5"])
experiment.run(world, config)
