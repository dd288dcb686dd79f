"""fedmpi: mpirun -n 3 python -m benchmarks.peers.ours A 6 (workload, rounds)."""

import contextlib
import os
import shlex
import tempfile
import time

from benchmarks.peers.work import arguments, load
from benchmarks.workloads import TRAINING
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World
from fedmpi.training.layout import Layout


def main(rung: str, rounds: int) -> None:
    world = World()
    work = load(rung, channels_last=False) if world.is_server else None
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # what fedmpi says of its rounds
    ):
        options = f"{TRAINING[rung].options} --evaluate_every 0 --rounds {rounds} --output {folder}/run.h5"
        experiment, config = parse(shlex.split(options), speaks=False)
        began = time.perf_counter()
        for outcome in experiment.outcomes(world, config):
            seconds = time.perf_counter() - began
            if work:
                views = Layout.of(work.network).views(experiment.algorithm.weights)
                work.report(seconds, outcome.clients["samples"].sum(), views)
            began = time.perf_counter()


if __name__ == "__main__":
    options = arguments()
    main(options.rung, options.rounds)
