"""FedGroup and FedGrouProx.

Duan, Liu, Ji, Wu, Liang, Chen, Tan, Ren: Flexible Clustered Federated Learning for Client-Level Data Distribution
Shift. IEEE TPDS 2022. https://arxiv.org/abs/2108.09749
Duan, Liu, Ji, Liu, Liang, Chen, Tan: FedGroup: Efficient Federated Learning via Decomposed Similarity-Based
Clustering. ISPA 2021. https://arxiv.org/abs/2010.06870
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.clustered import ClusteredOnce, best_aligned
from fedmpi.algorithms.proximal import Proximal
from fedmpi.algorithms.toolbox import clustering
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveInt
from fedmpi.training.block import Phase
from fedmpi.typing import Federation, Tensor


@with_options
class FedGroup(ClusteredOnce):
    """FedAvg in groups of clients whose first updates have similar directions (Duan et al., 2021).

    In the first round, the group cold start, some clients train the initial model and are clustered by the directions
    of their updates. A client that comes later also trains the initial model first, and joins the group whose update
    has the most similar direction. The cold start uses whole local epochs, where the released code uses 50 steps.

    Args:
        models: number of groups.
        measure: dissimilarity of two directions. edc: Euclidean distance of their cosines with the first singular
            vectors of all directions, with k-means. madc: mean difference of their cosines with all others, with
            hierarchical clustering and complete linkage.
        pretrained: clients per group in the cold start; all clients if there are fewer.
        pretrain_epochs: local epochs in the cold start; null: as many as in the local training.
        intergroup: rate of the aggregation between groups, which pulls each group's model towards the directions of
            the other groups' models; 0: none.
    """

    models: PositiveInt = 3
    measure: Literal["edc", "madc"] = "edc"
    pretrained: PositiveInt = 20
    pretrain_epochs: PositiveInt | None = None
    intergroup: NonNegativeFloat = 0.0

    alike_at_first = True

    def clients_to_ask(self, round: int, cohort: int, clients: int) -> int:
        return min(self.pretrained * self.models, clients) if round == 1 else cohort

    @property
    def phase(self) -> Phase:
        return Phase("cold start ", self.pretrain_epochs)

    def clusters(self, fed: Federation, compared: NDArray[np.float64]) -> NDArray[np.int64]:
        if self.measure == "madc":
            differences = clustering.mean_differences(clustering.cosines(compared))
            return clustering.hierarchical(differences, "complete", self.models)
        rows = clustering.decomposed_cosines(compared, self.models)
        return clustering.k_means(rows, self.models, fed.stream("first groups"))

    def nearest(self, changes: Tensor, prototypes: Tensor) -> Tensor:
        return best_aligned(changes, prototypes)

    def merged(self, centers: Tensor, parameters: int) -> Tensor:
        """w_m := (w_m + rate sum w_j / |w_j|) / (1 + rate sum 1 / |w_j|) with j other than m, for parameters only."""
        if not self.intergroup:
            return centers
        lengths = centers[:, :parameters].norm(dim=1, keepdim=True)
        result = centers.clone()
        trained, inverse = result[:, :parameters], 1 / lengths
        others = (trained * inverse).sum(0) - trained * inverse
        weights = 1 + self.intergroup * (inverse.sum(0) - inverse)
        trained.add_(others, alpha=self.intergroup).div_(weights)
        return result


class FedGrouProx(Proximal, FedGroup):
    """FedGroup with a proximal pull towards the group's model in local training (Duan et al., 2021).

    Args:
        mu: strength of the pull, as in FedProx. The other options are those of FedGroup.
    """

    def __init__(
        self,
        models: PositiveInt = 3,
        mu: NonNegativeFloat = 0.01,
        measure: Literal["edc", "madc"] = "edc",
        pretrained: PositiveInt = 20,
        pretrain_epochs: PositiveInt | None = None,
        intergroup: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(models, measure, pretrained, pretrain_epochs, intergroup)
        self.mu = mu
