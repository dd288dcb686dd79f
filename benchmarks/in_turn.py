"""Experiments one after another in one job, so that a GPU starts once: mpirun -n 3 python -m benchmarks.in_turn FILE.

Each line of the file is a name and the options of an experiment. After each, the server prints a line of JSON: the
name, the results file, the sha256 of the weights, the seconds of its rounds, the largest memory of tensors on the GPU
of rank 0 (bytes), and what went wrong, if anything did.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path

import torch

from fedmpi import results
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World


def main(lines: Path) -> None:
    world = World()
    for line in lines.read_text().splitlines():
        name, *options = shlex.split(line)
        found: dict[str, object] = {"name": name}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                experiment, config = parse([*options, "--overwrite"], speaks=False)
                experiment.complete(world, config)
        except Exception as error:
            if world.size > 1:  # the other ranks wait
                raise
            found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if world.is_server:
                run = results.open(experiment.output)
                seconds = run.rounds["seconds"].tolist()
                found |= {"file": str(experiment.output), "sha256": run.weights_sha256, "seconds": seconds}
        if torch.cuda.is_available():
            found["bytes"] = torch.cuda.max_memory_allocated()
        if world.is_server:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
