"""A method that does in the middle of a run what a file says; used by import path."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mpi4py import MPI

from tests.jobs.patient import Patient

if TYPE_CHECKING:
    from torch import Tensor

    from fedmpi.federation.federation import Federation
    from fedmpi.policies import Cohort
    from fedmpi.training.flat import Net
    from fedmpi.training.samples import Batch


class Told(Patient):
    """Federated averaging that waits in every round, and obeys in the training of a client.

    The file `hold` is empty, or says `hang RANK` (that rank waits for ever) or `leave RANK` (it ends, as if all were
    well). What was begun without the file ends as any run does, and the settings are the same. Rank 0 writes the
    number of the round into a file `round` beside it.
    """

    def round(self, fed: Federation, cohort: Cohort) -> None:
        if MPI.COMM_WORLD.Get_rank() == 0:
            self.hold.with_name("round").write_text(str(fed.round))
        super().round(fed, cohort)

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        order, _, rank = self.hold.read_text().partition(" ") if self.hold.exists() else ("", "", "")
        if rank == str(MPI.COMM_WORLD.Get_rank()):
            if order == "leave":
                os._exit(0)
            while True:
                time.sleep(1)
        return super().loss(net, batch, start, client)
