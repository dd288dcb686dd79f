"""Hierarchical clustering of clients by their updates.

Briggs, Fan, Andras: Federated learning with hierarchical clustering of local updates to improve training on non-IID
data. IJCNN 2020. https://arxiv.org/abs/2004.11791
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.clustered import ClusteredOnce, best_aligned, nearest
from fedmpi.algorithms.toolbox import clustering
from fedmpi.algorithms.toolbox.clustering import Linkage
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeInt, PositiveInt, interval
from fedmpi.typing import Federation, Stack, Tensor

NORMS = {"l1": 1, "l2": 2}


@with_options
class FLHC(ClusteredOnce):
    """FedAvg, then hierarchical clustering of clients by updates, then FedAvg per cluster (Briggs et al., 2020).

    Known as FL+HC. In the round of the clustering all clients are asked. The first model of a cluster is the mean of
    the models that its members trained in that round. In the paper, clusters start from the common model again. The
    traffic is the same, and one round is saved.

    Args:
        models: number of clusters.
        threshold: distance above which clusters are not merged, used instead of `models`; null: `models` clusters.
        warmup: rounds of FedAvg before the clustering; null: a fifth of all rounds, so no rounds can be added later.
        metric: distance between updates: sum of absolute differences, Euclidean, or 1 - cosine.
        linkage: distance between clusters.
    """

    models: PositiveInt = 3
    threshold: Annotated[float, interval("(0, inf]")] | None = None
    warmup: NonNegativeInt | None = None
    metric: Literal["l1", "l2", "cosine"] = "l2"
    linkage: Linkage = "ward"

    def __post_init__(self) -> None:
        fits = self.linkage != "ward" or self.metric == "l2"
        require(fits, "linkage", self.linkage, f"complete, average or single with metric {self.metric}")

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        return clients if round == self.first_round else cohort

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.first_round = 1 + (fed.rounds // 5 if self.warmup is None else self.warmup)
        require(fed.has_round(self.first_round), "warmup", self.warmup, "below the number of rounds")

    def compare(self, changes: Stack) -> NDArray[np.float64]:
        from fedmpi.federation.stack import absolute_differences

        return changes.pairwise(absolute_differences) if self.metric == "l1" else super().compare(changes)

    def clusters(self, fed: Federation, compared: NDArray[np.float64]) -> NDArray[np.int64]:
        if self.metric == "l2":
            compared = clustering.distances(compared)
        elif self.metric == "cosine":
            compared = 1 - clustering.cosines(compared)
        return clustering.hierarchical(compared, self.linkage, self.models, self.threshold)

    def nearest(self, changes: Tensor, prototypes: Tensor) -> Tensor:
        if self.metric == "cosine":
            return best_aligned(changes, prototypes)
        return nearest(changes, prototypes, NORMS[self.metric])
