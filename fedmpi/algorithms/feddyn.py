"""FedDyn.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization.
ICLR 2021. https://arxiv.org/abs/2111.04263
"""

from __future__ import annotations

from fedmpi.algorithms.base import Algorithm
from fedmpi.options import with_options
from fedmpi.ranges import PositiveFloat
from fedmpi.typing import Block, Cohort, Federation, Tensor


@with_options
class FedDyn(Algorithm):
    """Local losses with dynamic regularisation, so that local and global minima agree (Acar et al., 2021).

    Each client minimises F_k(w) - <g_k, w> + alpha/2 |w - w_t|^2 and then updates g_k, which tends to the gradient of
    F_k at the global minimum. With `--weighting samples`, a client with n samples counts as n clients of the paper.

    Args:
        alpha: strength of the regularisation.
    """

    alpha: PositiveFloat = 0.01

    server_state = ("weights", "drift")
    direction_is_elementwise = True
    weighting = "uniform"
    counts_clients_once = True
    averages_models = True

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.drift = self.weights.new_zeros(fed.layout.parameters)  # h, the mean of all g_k
        self.gradients = fed.client_state("gradient", self.drift)  # g_k

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained = slice(0, fed.layout.parameters)
        start = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            own = self.gradients[block]
            local = fed.train(block, start, self, own=own)
            mean.add(local.weights, block)
            self.gradients[block] = own.sub_((local.weights - start)[:, trained], alpha=self.alpha)
        result = mean.reduce(empty=self.weights)
        self.drift = self.drift - self.alpha * fed.fraction_heard(mean) * (result - self.weights)[trained]
        result[trained] -= self.drift / self.alpha
        self.weights = result

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient.sub_(block["own"]).add_(weights - start, alpha=self.alpha)
