"""What is recorded of clients that do not train, on several ranks: python records.py FOLDER."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.experiment.command_line import parse
from fedmpi.federation.ledger import Ledger
from fedmpi.mpi.world import World
from fedmpi.policies import Cohort, RoundPlan
from fedmpi.training.block import Block

if TYPE_CHECKING:
    from fedmpi.federation.federation import Federation


class EvenOnly(FedAvg):
    """FedAvg of the clients with even numbers; of some of them the loss is recorded as 0."""

    client_metrics = ("zero",)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        part = cohort.subset(np.flatnonzero(cohort.clients % 2 == 0))
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(part, start)
        for block in fed.my_clients(part):
            mean.add(fed.train(block, start, self).weights, block)
            fed.record(block, zero=torch.zeros(len(block)))
        records = fed.gather_records()
        trained = cohort.clients % 2 == 0
        for name in ("rank", "steps", "loss", "diverged", "zero"):
            assert (np.isnan(records[name]) == ~trained).all(), name
        assert len(fed.undiverged(cohort)) == len(cohort), "nobody has diverged"
        self.server_step(fed, mean.reduce(empty=self.weights))


def main(folder: str) -> None:
    world = World()
    options = (
        f"--clients 6 --cohort 5 --rounds 3 --local.steps 2 --evaluate_local true --output {folder}/{world.size}.h5"
    )
    experiment, config = parse(["--algorithm", "tests.jobs.records.EvenOnly", *options.split()])
    experiment.run(world, config)

    clients = np.array([4, 7])
    ones = np.ones(2, dtype=np.int64)
    ledger = Ledger(world, 1, RoundPlan(Cohort(clients, ones, ones)), ("twice",), (), 0.0)
    ledger.record(Block(clients, ones, ones), {"twice": ones})
    try:
        ledger.gather()
    except RuntimeError as error:
        if world.is_server:
            print(error)


if __name__ == "__main__":
    main(sys.argv[1])
    MPI.COMM_WORLD.Barrier()
