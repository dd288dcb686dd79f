"""One rung in one job, fedmpi and the bare loop in turn: mpirun -n 3 python -m benchmarks.pairs A 5 (rung, pairs).

A machine's speed drifts within minutes; two rounds that follow each other see nearly the same machine. Prints, for
every pair, the seconds of fedmpi's round and of the bare one. The bare loop runs on the ranks that train.
"""

import contextlib
import os
import shlex
import sys
import tempfile
import time

from benchmarks.workloads import TRAINING
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World


def main(name: str, pairs: int) -> None:
    world = World()
    workload = TRAINING[name]
    per_pair = workload.rounds_a_pair
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # what fedmpi says of its rounds
    ):
        options = f"{workload.options} --evaluate_every 0 --rounds {(pairs + 1) * per_pair} --output {folder}/run.h5"
        experiment, config = parse(shlex.split(options), speaks=False)
        from benchmarks.bare import BareLoop

        comm = type(world.comm)(world.comm.Split(0 if world.is_worker else 1))
        ways = workload.vectorised, workload.compiled
        bare = BareLoop(experiment, comm, *ways) if world.is_worker else None
        seconds = []
        for outcome in experiment.outcomes(world, config):
            seconds.append(outcome.row["seconds"])
            if len(seconds) < per_pair:
                continue
            world.meet()
            began = time.perf_counter()
            for _ in range(per_pair):
                if bare:
                    bare.round(outcome.clients["client"])
            world.meet()
            spent = time.perf_counter() - began
            if world.is_server and outcome.row["round"] > per_pair:  # the first pair warms up
                print(sum(seconds) / per_pair, spent / per_pair, file=sys.__stdout__, flush=True)
            seconds.clear()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
