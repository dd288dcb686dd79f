"""The iterative federated clustering algorithm.

Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning. NeurIPS 2020.
https://arxiv.org/abs/2006.04088
"""

from typing import TYPE_CHECKING

import numpy as np

from fedmpi.algorithms.base import Algorithm
from fedmpi.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fedmpi.algorithms.base import Vectors
    from fedmpi.federation import Federation
    from fedmpi.scheduling import Cohort
    from fedmpi.training.layout import Layout


class IFCA(Algorithm):
    """Several global models; each client trains the one with the least loss on its training samples.

    Model averaging variant of Ghosh et al. (2020). The models start from different random weights: equal ones would
    never part. A model that no client chose stays as it is.

    Args:
        models: how many models there are.
    """

    server_state = ("centers", "choice")
    client_metrics = ("cluster",)

    def __init__(self, models: int = 3) -> None:
        require(models >= 1, "models", models, "at least 1")
        self.models = models

    def setup(self, fed: "Federation") -> None:
        import torch

        self.centers = torch.stack([fed.initial_weights(m) for m in range(self.models)])
        self.choice = torch.full((fed.clients,), -1)  # -1: not asked yet

    def payload(self, layout: "Layout") -> tuple["Vectors", "Vectors"]:
        whole = [slice(layout.size)]
        return self.models * whole, whole

    def round(self, fed: "Federation", cohort: "Cohort") -> None:
        centers = fed.broadcast(self.centers)
        mean = fed.weighted_mean(cohort, centers, groups=self.models)
        for block in fed.my_clients(cohort):
            choice = fed.losses(block, centers).argmin(1)
            local = fed.train(block, centers[choice], self)
            mean.add(local.weights, block, group=choice)
            fed.record(block, cluster=choice)
        self.centers = mean.reduce(empty=self.centers)
        records = fed.gather_records()
        if fed.is_server:
            import torch

            self.choice[cohort.clients] = torch.from_numpy(records["cluster"]).long()
            sizes = np.bincount(self.choice[self.choice >= 0], minlength=self.models)
            fed.log(**{f"cluster_size_{m}": int(size) for m, size in enumerate(sizes)})

    @property
    def weights(self) -> "Tensor":  # type: ignore[override]
        """[P], the model that most clients chose last."""
        chosen = self.choice[self.choice >= 0]
        return self.centers[int(chosen.bincount().argmax()) if len(chosen) else 0]

    def evaluate(self, fed: "Federation") -> None:
        """Each client's model on the client's own test shard (client-matched), and on all of it (global-matched)."""
        fed.report_matched([fed.evaluate(center) for center in self.centers], self.choice)
