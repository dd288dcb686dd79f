"""Count the messages during the rounds of an experiment: python counted_runs.py FOLDER OPTION...

FOLDER/NODES-ROUNDS-RANK.json: {"METHOD BYTES": how often} over a run of so many rounds, for 2 and for 5, with all
ranks on one node and with a node each.
"""

import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from mpi4py import MPI

from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

#: Methods that move nothing: questions to the communicator, and the barrier and the probe of ranks that wait.
SILENT = {"Get_rank", "Get_size", "Ibarrier", "Iprobe"}
calls: Counter[str] = Counter()


class Counting(MPI.Intracomm):
    """Counts the calls of its methods, by name and the bytes of the longest buffer."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or name in SILENT or not callable(value):
            return value

        def counted(*arguments: Any, **options: Any) -> Any:
            given = [getattr(argument, "nbytes", 0) for argument in (*arguments, *options.values())]
            calls[f"{name} {max([0, *given])}"] += 1
            return value(*arguments, **options)

        return counted


def main(folder: str, options: list[str]) -> None:
    ranks = MPI.COMM_WORLD.Get_size()
    for nodes, rounds in product((1, ranks), (2, 5)):
        output = Path(folder, f"{nodes}-{rounds}.h5")
        experiment, config = parse([*options, "--rounds", str(rounds), "--output", str(output)], speaks=False)
        calls.clear()
        world = World(Counting(MPI.COMM_WORLD), ranks // nodes)
        experiment.run(world, config)
        Path(folder, f"{nodes}-{rounds}-{world.rank}.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
