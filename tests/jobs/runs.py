"""Run experiments one after another in parts of one MPI job: python runs.py FOLDER PART...

Each part is NAME:FIRST:RANKS[:RANKS_A_NODE], so many ranks of the job from that one on; parts that have no rank in
common run side by side. Each line of FOLDER/NAME/lines is a name and the options; the results go to
FOLDER/NAME/name.h5. (Starting a job takes seconds for each rank, a small run takes less.)
"""

import shlex
import sys
import time
from pathlib import Path

from mpi4py import MPI

from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

everyone = MPI.COMM_WORLD
for part in sys.argv[2:]:
    name, *numbers = part.split(":")
    first, ranks, *ranks_a_node = map(int, numbers)
    mine = range(first, first + ranks)
    if everyone.Get_rank() not in mine:
        continue
    world = World(everyone.Create_group(everyone.Get_group().Incl(list(mine))), *ranks_a_node)
    for line in Path(sys.argv[1], name, "lines").read_text().splitlines():
        run, *options = shlex.split(line)
        experiment, config = parse([*options, "--output", f"{sys.argv[1]}/{name}/{run}.h5"])
        experiment.run(world, config)
# Ranks that are done sleep until the others are: MPI's own way to the end keeps a core busy.
done = everyone.Ibarrier()
while not done.Test():
    time.sleep(0.05)
