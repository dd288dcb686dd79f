"""Cycling through clusters of clients.

Chen, Chen, Zhou, Kailkhura: FedCluster: Boosting the Convergence of Federated Learning via Cluster-Cycling. IEEE Big
Data 2020. https://arxiv.org/abs/2009.10748
"""

from __future__ import annotations

import numpy as np

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import require
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Cohort, Federation


@with_options
class FedCluster(Algorithm):
    """One model that is trained by FedAvg in one cluster of clients after another (Chen et al., 2020).

    The clients are divided once, at random, into clusters of equal size. A round has one cycle per cluster, in random
    order, and each cycle starts from the mean of the previous one. So a round updates the model once per cluster that
    has a client in the cohort (column server_updates), with the traffic of one round of FedAvg. The cohort is drawn
    from all clients, not per cluster. (FL+HC, which some tables call FedCluster, is `FLHC`.)

    Args:
        clusters: number of clusters.
    """

    clusters: PositiveInt = 5

    takes_server_optimizer = True
    takes_compression = False  # because error feedback would depend on the place of a cluster in the round
    averages_models = True
    client_metrics = ("cluster",)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        require(
            self.clusters <= fed.clients, "clusters", self.clusters, f"at most the number of clients, {fed.clients}"
        )
        self.cluster = fed.stream("clusters").permutation(fed.clients) % self.clusters

    def round(self, fed: Federation, cohort: Cohort) -> None:
        updates = 0
        for number in fed.stream("order of the clusters").permutation(self.clusters):
            part = self.members(fed, cohort, number)
            if part.total_mass:
                self.cycle(fed, part)
                updates += 1
        fed.log(server_updates=updates)

    def members(self, fed: Federation, cohort: Cohort, number: int) -> Cohort:
        """The clients of the cohort that are in this cluster."""
        part = cohort.subset(np.flatnonzero(self.cluster[cohort.clients] == number))
        if cohort.inclusion is None:
            return part
        return part.expecting(cohort.inclusion, np.where(self.cluster == number, fed.samples, 0))

    def cycle(self, fed: Federation, part: Cohort) -> None:
        """One round of FedAvg with these clients."""
        start = fed.broadcast(self.weights, received=len(part) * fed.layout.size)
        mean = fed.weighted_mean(part, start)
        for block in fed.my_clients(part):
            local = fed.train(block, start, self)
            mean.add(local.weights, block)
            fed.record(block, cluster=torch.from_numpy(self.cluster[block.clients]))
        self.server_step(fed, mean.reduce(empty=self.weights))
