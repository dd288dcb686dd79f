"""Multi-center federated learning.

Long, Xie, Shen, Zhou, Wang, Jiang: Multi-center federated learning: clients clustering for better personalization.
World Wide Web, 2023. https://arxiv.org/abs/2005.01026 (Xie et al., 2020)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.clustered import ClusteredOnce, nearest
from fedmpi.algorithms.toolbox import clustering
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.ranges import PositiveInt
from fedmpi.typing import Federation, Stack, Tensor


@with_options
class FeSEM(ClusteredOnce):
    """k-means of the clients' models, with local training in between (Xie et al., 2020).

    A client trains the model of its cluster. It is then assigned to the cluster whose model is nearest to its trained
    model (E step). The mean of a cluster's members is the cluster's next model (M step). In the first round all
    clients are asked and train the same model, so that they differ by their data and not by their initial models.
    Distances do not include running statistics.

    Args:
        models: number of clusters.
        start: how the first clusters are formed: by k-means, initialised by k-means++; or at random, as in the code
            released with the paper, where clusters start with nearly equal models.
        part: parameters that are compared: all, or those of the last fully connected layer, as in the released code.
    """

    models: PositiveInt = 3
    start: Literal["kmeans", "random"] = "kmeans"
    part: Literal["all", "head"] = "all"

    weighting = "uniform"
    takes_compression = False  # clients send the change of the model of their last cluster, not of the next one

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        return clients if round == 1 else cohort

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.compared = fed.layout.segments["head"] if self.part == "head" else slice(0, fed.layout.parameters)
        allowed = "all with a model that has no fully connected layer, or a frozen one"
        require(self.compared.stop > 0, "part", self.part, allowed)

    def compare(self, changes: Stack) -> NDArray[np.float64]:
        from fedmpi.federation.stack import inner_products

        return changes.pairwise(inner_products, self.compared.stop)

    def clusters(self, fed: Federation, compared: NDArray[np.float64]) -> NDArray[np.int64]:
        rng = fed.stream("first clusters")
        if self.start == "random":
            return rng.permutation(len(compared)) % self.models
        return clustering.k_means(clustering.points(compared), self.models, rng)

    def nearest(self, changes: Tensor, prototypes: Tensor) -> Tensor:
        return nearest(changes[:, self.compared], prototypes[:, self.compared])

    def again(self, models: Tensor, centers: Tensor, choice: Tensor) -> Tensor:
        return nearest(models[:, self.compared], centers[:, self.compared])
