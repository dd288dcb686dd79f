"""What DistributionFusion's inference costs in a round with ResNet18: python -m benchmarks.inference.

The rounds are those of workload C, with ten clients. Prints the seconds of a round with the first fit, of one without
a fit, and of one with another fit; what of it the server needs for statistics, inference and weights; and the bytes.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import tempfile
from pathlib import Path

from benchmarks.workloads import TRAINING
from fedmpi import results
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = f"{TRAINING['C'].options} --algorithm DistributionFusion --algorithm.fit_every 2 --rounds 3"
        experiment, config = parse(shlex.split(f"{options} --evaluate_every 0 --output {folder}/run.h5"))
        with contextlib.redirect_stdout(io.StringIO()):
            experiment.run(World(), config)
        run = results.open(Path(folder, "run.h5"))
        rounds, weights, clients = run.rounds, run.state_dict(), len(run.clients["client"]) // 3
    for kind, whole, server in zip(
        ("first fit", "no fit", "fit"), rounds["seconds"], rounds["server_seconds"], strict=True
    ):
        print(f"{kind:10}{whole:8.2f} s per round, {server:.3f} s at the server ({100 * server / whole:.1f} %)")
    buffers = sum(x.size for name, x in weights.items() if name.endswith(("running_mean", "running_var")))
    told = 2 * buffers  # as many scales and shifts as means and variances
    up = int(rounds["bytes_up"][0]) // clients
    size = 4 * sum(x.size for x in weights.values())
    print(f"a client sends {up:,} bytes, {4 * told:,} of them first, for the weights; a model has {size:,}")


if __name__ == "__main__":
    main()
