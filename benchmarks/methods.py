"""What a method costs, in one job: mpirun -n 3 python -m benchmarks.methods SCAFFOLD 5 (method and options, pairs).

Rounds of FedAvg and of the method in turn, with the same clients: workload A. Prints, for every pair, the seconds of
the method's round and of FedAvg's, and the work of the method's clients in units of FedAvg's. This work is what the
method itself states, for the virtual clock.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from benchmarks.workloads import TRAINING
from fedmpi.experiment.command_line import parse
from fedmpi.mpi.world import World

if TYPE_CHECKING:
    from fedmpi.algorithms import Algorithm
    from fedmpi.federation.federation import Federation
    from fedmpi.federation.ledger import Outcome
    from fedmpi.policies import Cohort

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

        def outcomes(algorithm: str, name: str) -> Iterator[tuple[Outcome, float]]:
            options = f"{TRAINING['A'].options} --algorithm {algorithm} --evaluate_every 0 --rounds {pairs + 1}"
            options += f" {(METHODS | ASYNCHRONOUS)[method]}"
            experiment, config = parse([*shlex.split(options), "--output", f"{folder}/{name}.h5"], speaks=False)
            works: list[float] = []
            experiment.algorithm.round = _counting(experiment.algorithm, works)  # type: ignore[assignment]
            for outcome in experiment.outcomes(world, config):
                yield outcome, works[-1]

        for (other, work), (plain, plain_work) in zip(
            outcomes(method, "method"), outcomes("FedAvg", "fedavg"), strict=True
        ):
            if world.is_server and plain.row["round"] > 1:  # the first pair warms up
                found = other.row["seconds"], plain.row["seconds"], work / plain_work
                print(*found, file=sys.__stdout__, flush=True)


def _counting(algorithm: Algorithm, works: list[float]) -> Callable[[Federation, Cohort], None]:
    """The method's round, which notes the work of its clients, in steps of plain training."""
    play = algorithm.round

    def round(fed: Federation, cohort: Cohort) -> None:
        works.append(float(algorithm.count_work(fed, cohort).sum()))
        play(fed, cohort)

    return round


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
