"""What a method costs, in one job: mpirun -n 3 python -m benchmarks.methods SCAFFOLD 5 (method and options, pairs).

Rounds of FedAvg and of the method in turn, with the same clients: workload A. Prints, for every pair, the seconds of
the method's round and of FedAvg's, and the work of the method's clients in units of FedAvg's. This work is what the
method itself states, for the virtual clock.
"""

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.workloads import TRAINING
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

if TYPE_CHECKING:
    from fedmpi.algorithms import Algorithm
    from fedmpi.federation.ledger import Outcome

#: method with its options -> further options of its runs and of FedAvg's
METHODS = {
    **dict.fromkeys(("FedProx", "SCAFFOLD", "FedDyn", "FedNova"), ""),
    **dict.fromkeys(
        (
            "FedCM",
            "FedACG",
            "FedExP",
            "FedDisco",
            "MimeLite",
            "FedSAM",
            "MoFedSAM",
            "FedLC",
            "FedRS",
            "FedNTD",
            "Ditto",
            "FedPer",
            "FedRep --algorithm.head_epochs 1",
            "FedBABU",
            "LGFedAvg",
            "FedRoD",
            "APFL",
            "FedALA",
            "PerFedAvg",
            "PerFedAvg --algorithm.variant HF",
            "pFedMe --algorithm.inner_lr 0.01",
            "FedAMP",
            "FedFomo",
            "FedProto",
            "FedPAC",
            "FedDBE",
        ),
        "--cohort 10",
    ),
    **{
        f"FeatureFusion --algorithm.operator {o}": "--local.epochs 5 --cohort 10" for o in ("single", "multi", "conv")
    },
    "FeatureFusion --algorithm.cache_mb 0": "--local.epochs 5 --cohort 10",
}
ASYNCHRONOUS = {"FedBuff --algorithm.concurrency 100": "--conditions Heterogeneous --conditions.speed_spread 1"}


def main(method: str, pairs: int) -> None:
    world = World()
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),  # what fedmpi says of its rounds
    ):

        def outcomes(algorithm: str, name: str) -> "tuple[Algorithm, Iterator[Outcome]]":
            options = f"{TRAINING['A'].options} --algorithm {algorithm} --evaluate_every 0 --rounds {pairs + 1}"
            options += f" {(METHODS | ASYNCHRONOUS)[method]}"
            experiment, config = parse([*shlex.split(options), "--output", f"{folder}/{name}.h5"], speaks=False)
            return experiment.algorithm, experiment.outcomes(world, config)

        (algorithm, others), (_, plains) = outcomes(method, "method"), outcomes("FedAvg", "fedavg")
        for other, plain in zip(others, plains, strict=True):
            if world.is_server and plain.row["round"] > 1:  # the first pair warms up
                steps = other.clients["steps"].sum() / plain.clients["steps"].sum()
                work = algorithm.step_cost * steps + algorithm.forward_passes / 3
                print(other.row["seconds"], plain.row["seconds"], work, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
