"""What ranks do per round, by processor time: mpirun -n 3 python -m benchmarks.processor_time D 200 (rung, rounds).

Processor time depends less on other programs of the machine than the time that passes. Further options of fedmpi may
follow. Prints, for each rank: milliseconds of processor time and page faults per round, without those of the first
fifth of the rounds, and the most memory that the process had, in MB.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import sys
import tempfile
import time

import numpy as np

from benchmarks.workloads import TRAINING
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World


def main(name: str, rounds: int, more: list[str]) -> None:
    world = World()
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # what fedmpi says of its rounds
    ):
        options = [*shlex.split(TRAINING[name].options), "--evaluate_every", "0", "--rounds", str(rounds)]
        experiment, config = parse([*options, "--output", f"{folder}/run.h5", *more], speaks=False)
        found = [_spent() for _ in experiment.outcomes(world, config)]
    spent = np.diff(found[rounds // 5 :], axis=0).mean(axis=0).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    for rank, (milliseconds, faults, megabytes) in enumerate(world.comm.gather([*spent, peak]) or ()):
        print(f"rank {rank}: {milliseconds:.1f} ms, {faults:.0f} page faults, {megabytes:.0f} MB")


def _spent() -> tuple[float, int]:
    """Milliseconds of processor time and page faults of this process so far."""
    return 1e3 * time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
