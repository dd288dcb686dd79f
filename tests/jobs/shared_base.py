"""Whether the ranks of a node have one copy of what is frozen: each rank changes one value, and all must see it.

Prints for each rank the first values of the frozen layer after that, in one line.
"""

import sys

from mpi4py import MPI

from fedmpi.experiment.assembly import assemble
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

options = ["--model", "tests.jobs.networks.HalfFrozen", "--model.floor", "true", "--device", "cpu"]
experiment, _ = parse([*options, *sys.argv[1:]])
world = World(MPI.COMM_WORLD)
fed = assemble(experiment, world).engine.federation
weight = fed.layout.frozen["extractor.1.bias"]
world.meet()
weight.data[world.rank] = world.rank + 10
world.meet()
found = [weight, fed.context.evaluator.model.layout.frozen["extractor.1.bias"]]
lines = world.gather_text(" ".join(f"{value:g}" for each in found for value in each[: world.size].tolist()))
if world.is_server:
    print("\n".join(lines))
