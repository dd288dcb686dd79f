"""A method, and a partition, that fail as they are told; used by import path."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Literal

from mpi4py import MPI

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.data import IID
from fedmpi.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort
    from fedmpi.training.flat import Net
    from fedmpi.training.samples import Batch

Kind = Literal[
    "RuntimeError",
    "exit",
    "leave",
    "KeyboardInterrupt",
    "MemoryError",
    "nan",
    "BadInput",
    "kill",
    "full",
    "terminate",
]
Phase = Literal["constructor", "setup", "loss", "round", "evaluate", "write"]
#: Bytes of a file beyond which the disk is as good as full.
FULL = 4096


class Shares(IID):
    """An even split, which some ranks cannot make."""

    def __init__(self, kind: Kind, ranks: tuple[int, ...]) -> None:
        self.kind = kind
        self.fails = MPI.COMM_WORLD.Get_rank() in ranks

    def split(self, labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        if self.fails:
            fail(self.kind)
        return super().split(labels, clients, rng)


class Faulty(FedAvg):
    """Federated averaging that goes well for some rounds.

    Args:
        kind: what happens.
        ranks: to whom.
        phase: where: in a client's training, between two collectives of a round, where the server writes, ...
        at: in which round.
        server_sleeps: seconds for which rank 0 hears nothing, in the middle of that round.
    """

    def __init__(
        self, kind: Kind, ranks: tuple[int, ...], phase: Phase, at: int = 3, server_sleeps: float = 0.0
    ) -> None:
        self.kind = kind
        self.phase = phase
        self.at = at
        self.server_sleeps = server_sleeps
        self.rank = MPI.COMM_WORLD.Get_rank()
        self.fails = self.rank in ranks
        self.now = 0
        if phase == "constructor":
            self.fail()

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        if self.phase == "setup":
            self.fail()

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.now = fed.round
        if self.is_due("write"):
            fed.context.when_idle = self.fail
        start = fed.broadcast(self.weights)
        if self.now == self.at and self.rank == 0:
            time.sleep(self.server_sleeps)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            mean.add(fed.train(block, start, self).weights, block)
        self.fail_in("round")
        self.weights = mean.reduce(empty=self.weights)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        self.fail_in("loss")
        loss = super().loss(net, batch, start, client)
        return loss * float("nan") if self.kind == "nan" and self.is_due("loss") else loss

    def evaluate(self, fed: Federation) -> None:
        self.fail_in("evaluate")
        super().evaluate(fed)

    def is_due(self, phase: Phase) -> bool:
        return self.fails and self.now == self.at and self.phase == phase

    def fail_in(self, phase: Phase) -> None:
        if self.is_due(phase):
            self.fail()

    def fail(self) -> None:
        if self.fails:
            fail(self.kind)


def fail(kind: Kind) -> None:
    """Fail in a certain way, and say when."""
    sys.stderr.write(f"fails at {time.time()}\n")  # at once, for several ranks may write
    if kind == "kill":
        time.sleep(0.5)  # for the launcher to pass that on
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        sys.exit(0)
    if kind == "leave":  # the launcher takes that for a good end
        os._exit(0)
    if kind == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if kind == "BadInput":
        raise BadInput("is not what it should be", "kind")
    if kind == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
    elif kind != "nan":
        raise {"RuntimeError": RuntimeError, "MemoryError": MemoryError}[kind]("as I was told")
