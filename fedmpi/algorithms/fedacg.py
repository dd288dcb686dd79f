"""FedACG.

Kim, Kim, Han: Communication-Efficient Federated Learning with Accelerated Client Gradient. CVPR 2024.
https://arxiv.org/abs/2201.03172
"""

from __future__ import annotations

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.proximal import Proximal
from fedmpi.options import with_options
from fedmpi.ranges import BelowOne, NonNegativeFloat
from fedmpi.typing import Cohort, Federation


@with_options
class FedACG(Proximal, FedAvg):
    """FedAvg whose clients start ahead, where the server's momentum leads (Kim et al., 2024).

    The server sends s = w + lookahead m. Clients minimise F_k(v) + mu/2 |v - s|^2 from there. The mean of their
    models is the next w, and m its change. So m follows m = lookahead m + mean_k (w_k - s). As much is sent as with
    FedAvg. The model that is evaluated is w. Running statistics are averaged.

    Args:
        lookahead: lambda in the paper, the share of the momentum by which clients start ahead; 0 is FedProx.
        mu: strength of the pull towards s, beta in the paper.
    """

    lookahead: BelowOne = 0.85
    mu: NonNegativeFloat = 0.002

    server_state = ("weights", "momentum")
    hidden_state = ("momentum",)
    takes_server_optimizer = False

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.momentum = self.weights.new_zeros(fed.layout.parameters)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        trained, ahead = slice(0, fed.layout.parameters), self.weights.clone()
        ahead[trained] += self.lookahead * self.momentum
        start = fed.broadcast(ahead)
        mean = fed.weighted_mean(cohort, start)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self)
            mean.add(local.weights, block)
        result = mean.reduce(empty=ahead)
        self.momentum = (result - self.weights)[trained]
        self.weights = result
