"""Clustered federated learning.

Sattler, Müller, Samek: Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization Under Privacy
Constraints. IEEE TNNLS 2021. https://arxiv.org/abs/1910.01991
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.clustered import Clustered
from fedmpi.algorithms.toolbox import clustering
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt, interval
from fedmpi.typing import Cohort, Federation


@with_options
class CFL(Clustered):
    """FedAvg in clusters that are split when only their mean has converged (Sattler et al., 2021).

    At first all clients are one cluster. A cluster is split if the mean of its clients' updates is short and the
    longest update is not. It is split by complete linkage of the cosines between updates, as in the released code,
    and only in a round in which all of its clients take part, as with `--sampler All`. Suitable thresholds depend on
    the network, the learning rate and the amount of training. The columns mean_change_N and largest_change_N of
    /rounds help to choose them.

    Args:
        mean_below: a cluster is split only if the L2 norm of its mean update is below this value.
        largest_above: a cluster is split only if the L2 norm of a client's update is above this value.
        warmup: number of first rounds in which no cluster is split.
        min_size: clusters with this many clients or fewer are not split.
    """

    mean_below: Annotated[float, interval("[0, inf]")] = 0.4
    largest_above: Annotated[float, interval("[0, inf]")] = 1.6
    warmup: NonNegativeInt = 20
    min_size: PositiveInt = 2

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.assignment.zero_()

    def round(self, fed: Federation, cohort: Cohort) -> None:
        from fedmpi.federation.stack import inner_products

        group = fed.broadcast(self.assignment, received=0)[cohort.clients].cpu().numpy()
        centers = fed.broadcast(self.centers, received=len(cohort) * fed.layout.size)
        changes = fed.stack(cohort, centers, group)
        for block in fed.my_clients(cohort):
            mine = group[np.searchsorted(cohort.clients, block.clients)]
            changes.add(fed.train(block, centers[mine], self).weights, block)
        changes.close()
        fed.log(rejected=changes.rejected)
        products = changes.pairwise(inner_products)
        if fed.is_server:
            present = changes.present
            self.split(fed, cohort.clients[present], cohort.mass[present], products)
            fed.record(cohort.block(np.arange(len(cohort))), cluster=self.assignment[cohort.clients])
        assignment = fed.broadcast(self.assignment, received=0)
        models, (before, size) = int(assignment.max()) + 1, self.centers.shape
        empty = torch.cat([self.centers, self.centers.new_zeros(models - before, size)])
        self.centers = changes.means(assignment[cohort.clients].cpu().numpy(), cohort.mass, models, empty)
        fed.report_clusters(self.assignment, models)

    def split(self, fed: Federation, clients: NDArray[np.int64], mass: NDArray[np.int64], products: NDArray) -> None:
        """Split clusters that meet the conditions, by the inner products [k, k] of these clients' updates [k]."""
        assignment = self.assignment.numpy()
        models = len(self.centers)
        for number in range(len(self.centers)):
            members = np.flatnonzero(assignment[clients] == number)
            if not len(members):
                continue
            shares, own = mass[members] / mass[members].sum(), products[np.ix_(members, members)]
            mean, largest = np.sqrt(max(shares @ own @ shares, 0)), np.sqrt(own.diagonal().max())
            fed.log(**{f"mean_change_{number}": float(mean), f"largest_change_{number}": float(largest)})
            complete = len(members) == (assignment == number).sum() > self.min_size
            due = fed.round > self.warmup and mean < self.mean_below and largest > self.largest_above
            if complete and due:
                second = clustering.hierarchical(1 - clustering.cosines(own), "complete", 2) == 1
                assignment[clients[members[second]]] = models
                models += 1
