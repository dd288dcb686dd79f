"""Resume several experiments in one MPI job: python goes_on.py FOLDER FILE.

Each line of FILE is NAME and the options; what is resumed is FOLDER/NAME.h5. Of what clients keep, rank 0 holds less
than it would otherwise.
"""

import shlex
import sys
from pathlib import Path

from fedmpi.experiment import checkpoint
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

checkpoint.PIECE_ELEMENTS = 3000
world = World()
for line in Path(sys.argv[2]).read_text().splitlines():
    name, *options = shlex.split(line)
    experiment, config = parse([*options, "--output", f"{sys.argv[1]}/{name}.h5", "--resume"])
    assert experiment.run(world, config).status == "finished", name
