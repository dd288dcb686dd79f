"""A method that hangs as it is told, in its second round; used by import path."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Literal

from mpi4py import MPI

from fedmpi.algorithms.fedavg import FedAvg

if TYPE_CHECKING:
    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort


class Hanging(FedAvg):
    """Federated averaging of which one rank does not go on.

    Args:
        how: sleep, spin: in Python; elsewhere: it waits for others at another place; inside: in a call of MPI that no
            other rank makes; stopped: by SIGSTOP.
        who: which rank.
    """

    def __init__(self, how: Literal["sleep", "spin", "elsewhere", "inside", "stopped"], who: int = 2) -> None:
        self.how = how
        self.who = who

    def round(self, fed: Federation, cohort: Cohort) -> None:
        """One round, if it is the first."""
        if fed.round == 2 and MPI.COMM_WORLD.Get_rank() == self.who:
            print(f"hangs at {time.time()}", file=sys.stderr, flush=True)
            if self.how == "sleep":
                time.sleep(3600)
            if self.how == "spin":
                while True:
                    pass
            if self.how == "elsewhere":
                fed.context.world.meet()
                fed.context.world.meet()
            if self.how == "inside":
                MPI.COMM_WORLD.Barrier()
            if self.how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
        super().round(fed, cohort)
