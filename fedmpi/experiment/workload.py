"""The work of clients in the coming round, for the simulated conditions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms import Algorithm
from fedmpi.federation.engine import Engine
from fedmpi.policies import Cohort


class MethodWorkload:
    """A `fedmpi.policies.Workload`.

    Args:
        engine: of the federation that the method trains.
        algorithm: the method.
    """

    def __init__(self, engine: Engine, algorithm: Algorithm) -> None:
        fed = engine.federation
        self.round = fed.round
        self.clients = fed.clients
        self.epochs = fed.local.steps or fed.local.epochs
        self.accepts_partial_work = algorithm.accepts_partial_work
        self._engine = engine
        self._algorithm = algorithm

    def work(self, cohort: Cohort) -> NDArray[np.float64]:
        """[m] computation of each client, in steps of plain training."""
        return self._algorithm.count_work(self._engine.federation, cohort)

    def payload(self, cohort: Cohort) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[m] bytes that each client receives, and sends."""
        fed = self._engine.federation
        down, up = self._engine.payload(*self._algorithm.payload(fed.layout))
        return down + 4 * self._algorithm.received_beside(fed, cohort), np.full(len(cohort), up)
