"""What a method costs, in one job: mpirun -n 3 python -m benchmarks.methods SCAFFOLD 5 (method and options, pairs).

Rounds of FedAvg and of the method in turn, with the same clients: workload A. Prints, for every pair, the seconds of
the method's round and of FedAvg's, and the work of the method's clients in units of FedAvg's. This work is what the
method itself states, for the virtual clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.alternating import pairs_of_rounds
from benchmarks.workloads import TRAINING
from fedmpi.mpi.world import World

if TYPE_CHECKING:
    from fedmpi.algorithms import Algorithm
    from fedmpi.experiment.experiment import Experiment
    from fedmpi.federation.federation import Federation
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
    shared = f"{TRAINING['A'].options} {(METHODS | ASYNCHRONOUS)[method]}"
    ours, reference = (f"{shared} --algorithm {name}" for name in (method, "FedAvg"))
    of_both: list[list[float]] = []

    def count(experiment: Experiment) -> None:
        of_both.append([])
        experiment.algorithm.round = _counting(experiment.algorithm, of_both[-1])  # type: ignore[assignment]

    for other, plain in pairs_of_rounds(world, ours, reference, pairs, count):
        if world.is_server:
            work, plain_work = (works[-1] for works in of_both)
            print(other.row["seconds"], plain.row["seconds"], work / plain_work, file=sys.__stdout__, flush=True)


def _counting(algorithm: Algorithm, works: list[float]) -> Callable[[Federation, Cohort], None]:
    """The method's round, which notes the work of its clients, in steps of plain training."""
    play = algorithm.round

    def round(fed: Federation, cohort: Cohort) -> None:
        works.append(float(algorithm.count_work(fed, cohort).sum()))
        play(fed, cohort)

    return round


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
