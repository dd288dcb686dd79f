"""FedAMP.

Huang, Chu, Zhou, Wang, Liu, Pei, Zhang: Personalized Cross-Silo Federated Learning on Non-IID Data. AAAI 2021.
https://arxiv.org/abs/2007.03797
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.mixing import Mixing
from fedmpi.algorithms.proximal import Proximal
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, Probability, interval
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


@with_options
class FedAMP(Proximal, Mixing):
    """Personal models, each pulled towards a mixture in which similar models weigh more (Huang et al., 2021).

    A client minimises F_k(w) + mu/2 |w - u_k|^2 over the trained parameters. It sends its model w_k. For each of the
    m clients of the round, the server then mixes the models of the round, and sends the mixture back:
    u_k = (1 - sum_j x_kj) w_k + sum_j x_kj w_j over the others j, with x_kj = share / (m - 1) exp(-d_kj / sigma) and
    d_kj = |w_k - w_j|^2 over the parameters. This is the paper's attention function 1 - exp(-d / sigma) with
    alpha = share sigma / (m - 1).

    A client keeps u_k until its next round. Its own model w_k is evaluated on its test samples. The column others of
    /clients has sum_j x_kj, the share of the other clients' models in u_k.

    Args:
        mu: strength of the pull, lambda / alpha in the paper; 0 is LocalOnly if training starts at the own model.
        share: share of the others in the mixture if all models are equal.
        sigma: the squared distance over which the weight of a model falls to 1/e; null: in each round the mean over
            all pairs of models, whatever the size of the network.
        start: where a client's training starts: at its own last model, or at the mixture.
    """

    mu: NonNegativeFloat = 1.0
    share: Probability = 0.5
    sigma: Annotated[float, interval("(0, inf]")] | None = None
    start: Literal["own", "mixture"] = "own"

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.mixture = fed.client_state("mixture", self.weights)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        whole = [slice(layout.size)]
        return whole, whole

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained = slice(0, fed.layout.parameters)
        models, mine = fed.stack(cohort, self.own.initial), []
        for block in fed.my_clients(cohort):
            mixture = self.mixture[block]
            start = self.own[block] if self.start == "own" else mixture
            local = fed.train(block, start, self, mixture=mixture[:, trained])
            models.add(local.weights, block)
            self.own[block] = local.weights
            mine += [block.rows([k]) for k in block.undiverged()]
        models.close()
        weights = np.zeros((len(cohort), len(cohort)))
        weights[np.ix_(models.present, models.present)] = self.attention(models.distances())

        def weigh(number: int, client: int, model: Tensor) -> float:
            return float(weights[tuple(np.searchsorted(cohort.clients, (mine[number].clients[0], client)))])

        for client, mixture in self.mixtures(fed, cohort, models, mine, len(models.present), weigh):
            self.mixture[client] = mixture

    def attention(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """[k, k] the weights of models in the mixture of each client, from their squared distances [k, k]."""
        count = len(distances)
        others = ~np.eye(count, dtype=bool)
        if count < 2:
            return np.ones((count, count))
        sigma = self.sigma or distances[others].mean() or 1.0
        weights = np.where(others, self.share / (count - 1) * np.exp(-distances / sigma), 0.0)
        return weights + np.diag(1 - weights.sum(1))

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return super().direction(gradient, weights, block["mixture"], block)
