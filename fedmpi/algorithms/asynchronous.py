"""Base of the asynchronous methods: clients start from the versions of the server's model that are current then."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.proximal import Proximal
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.policies.timeline import Arrivals
from fedmpi.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from fedmpi.typing import Cohort, Federation, Tensor


@with_options
class Asynchronous(Proximal, FedAvg):
    """Clients train at the same time from different versions of the model, and the server updates it as they arrive.

    The schedule is that of `fedmpi.policies.timeline`. A round is a row of it: the next `--cohort` arrivals. A client
    is trained in the row in which its update arrives, from the version that it started from.

    Args:
        concurrency: number of clients that train at the same time; null: ten times the cohort, at most half of the
            clients.
        mu: strength of the pull towards the version that the client started from; 0: no pull.
        max_staleness: largest staleness of an update, in server updates; staler ones are discarded; null: none are.

    Attributes:
        versions: [slots, P] versions that jobs in flight have started from, and the present one.
        slots: number of each version -> its row of `versions`; on every rank.
    """

    concurrency: PositiveInt | None = None
    mu: NonNegativeFloat = 0.0
    max_staleness: NonNegativeInt | None = None

    server_state = ("weights", "versions")
    hidden_state = ("versions",)
    recomputed = ("slots",)
    weighting = "uniform"
    is_asynchronous = True
    averages_models = takes_privacy = False

    def in_flight(self, cohort: int, clients: int) -> int:
        """Number of clients that train at the same time."""
        return self.concurrency or max(min(10 * cohort, clients // 2), 1)

    def buffer(self, cohort: int) -> int:
        """Arrivals per server update."""
        return 1

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.slots = {0: 0}
        self.versions: Tensor = self.weights[None].clone()

    def round(self, fed: Federation, cohort: Cohort) -> None:
        assert isinstance(cohort, Arrivals)
        formed = self.schedule(cohort)
        if len(cohort):
            self.update(fed, cohort, formed)
        self.forget(cohort)

    @abstractmethod
    def update(self, fed: Federation, arrivals: Arrivals, formed: list[int]) -> None:
        """Update the model with a row of arrivals, at least one.

        Args:
            formed: the numbers of the new versions that must be kept (in `memory`).
        """

    def schedule(self, arrivals: Arrivals) -> list[int]:
        """Find a slot for each new version of this row that a job needs, and free the slots of the others.

        Returns: the numbers of the versions that are kept when they are formed.
        """
        needed = {*arrivals.needed_versions.tolist(), *arrivals.version.tolist()}
        formed = [version for version in np.unique(arrivals.number + 1).tolist() if version in needed]
        for version in formed:
            taken = set(self.slots.values())
            self.slots[version] = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        return formed

    def forget(self, arrivals: Arrivals) -> None:
        """Free the slots of versions that no job needs after this row."""
        needed = set(arrivals.needed_versions.tolist())
        self.slots = {version: slot for version, slot in self.slots.items() if version in needed}

    def memory(self, version: int) -> Tensor:
        """[P] where a version is kept."""
        slot = self.slots[version]
        if slot >= len(self.versions):
            more = self.versions.new_empty(len(self.versions), self.versions.shape[1])
            self.versions = torch.cat([self.versions, more])
        return self.versions[slot]

    def starts(self, fed: Federation, arrivals: Arrivals) -> tuple[Tensor, NDArray[np.int64]]:
        """[G, P] the versions that these clients started from, on every rank; and [m] which of them each has."""
        numbers, which = np.unique(arrivals.version, return_inverse=True)
        versions = [self.versions[self.slots[number]] for number in numbers.tolist()]
        return fed.broadcast(versions, received=len(arrivals) * fed.layout.size), which


def rows(matrix: Tensor, which: NDArray[np.int64]) -> Tensor:
    """[K, n] these rows of a matrix; without a copy if it is only one."""
    if len(which) == 1:
        return matrix[int(which[0])][None]
    return matrix[torch.from_numpy(which).to(matrix.device)]
