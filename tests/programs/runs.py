"""Run several experiments one after another in one MPI job: python runs.py FOLDER FILE [RANKS_A_NODE].

Each line of FILE is NAME and the options; the results go to FOLDER/NAME.h5. (Starting a job takes seconds, a small
run takes less.)
"""

import shlex
import sys
from pathlib import Path

from fedmpi.command_line import parse
from fedmpi.mpi.world import World

world = World(None, *map(int, sys.argv[3:]))
for line in Path(sys.argv[2]).read_text().splitlines():
    name, *options = shlex.split(line)
    experiment, config = parse([*options, "--output", f"{sys.argv[1]}/{name}.h5"])
    experiment.run(world, config)
