"""FedALA: each client learns how much of the global head it takes over.

Zhang, Hua, Wang, Song, Xue, Ma, Guan: FedALA: Adaptive Local Aggregation for Personalized Federated Learning. AAAI
2023. https://arxiv.org/abs/2212.01197
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.errors import BadInput
from fedmpi.lazy import torch
from fedmpi.options import with_options
from fedmpi.ranges import NonNegativeFloat, PositiveInt
from fedmpi.training.block import GRADIENT
from fedmpi.typing import Block, Cohort, Federation, Tensor


@with_options
class FedALA(FedAvg):
    """FedAvg whose clients start from a learned mixture of their own head and the global one (Zhang et al., 2023).

    The head is the last fully connected layer. A client starts a round from the received body and the head
    own + W (global - own), elementwise, where own is the head that it trained last. The shares W begin as 1. Before
    the training, they follow the gradient of the client's training loss with respect to W, and stay in [0, 1]; a
    client that has not been trained yet starts from the global model instead. Then the client trains and sends the
    whole model.

    The mixture of each client's kept head and the current global model is evaluated on the client's test samples. The
    column global_accuracy has the accuracy of the global model on the whole test set. The column share of /clients
    has the mean of W.

    Args:
        rate: learning rate of the shares; with 0 they stay 1, which is FedAvg.
        first_steps: steps of the shares when a client takes part for the second time, so that it first has a head of
            its own. Each step takes a pass over the client's samples.
        steps: steps of the shares in each later round of the client.
    """

    rate: NonNegativeFloat = 1.0
    first_steps: PositiveInt = 10
    steps: PositiveInt = 1

    server_state = ("weights", "visits")
    hidden_state = ("visits",)
    client_metrics = ("share",)

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.head = fed.layout.segments["head"]
        first = self.weights[self.head]
        if not len(first):
            raise BadInput("--model: FedALA needs a fully connected layer that is trained")
        self.visits = torch.zeros(fed.clients, dtype=torch.int64)  # how often each client was trained
        self.kept = fed.client_state("kept", first)
        self.shares = fed.client_state("shares", torch.ones_like(first))

    def count_share_steps(self, fed: Federation, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """[m] steps of the shares of these clients in the round; a collective."""
        visits = fed.broadcast(self.visits, received=0).cpu().numpy()[clients]
        return np.choose(np.minimum(visits, 2), (0, self.first_steps, self.steps))

    def count_steps(self, fed: Federation, cohort: Cohort) -> NDArray[np.int64]:
        passes = self.count_share_steps(fed, cohort.clients)
        return super().count_steps(fed, cohort) + passes * fed.count_steps(cohort, GRADIENT)

    def round(self, fed: Federation, cohort: Cohort) -> None:
        passes = self.count_share_steps(fed, np.arange(fed.clients))
        received = fed.broadcast(self.weights)
        mean = fed.weighted_mean(cohort, received)
        for block in fed.my_clients(cohort):
            shares = self.learned(fed, block, received, passes[block.clients])
            local = fed.train(block, self.mixed(block, received, shares), self)
            mean.add(local.weights, block)
            self.kept[block], self.shares[block] = local.weights[:, self.head], shares
            fed.record(block, share=shares.mean(1))
        self.server_step(fed, mean.reduce(empty=self.weights))
        trained = fed.undiverged(cohort).clients
        if fed.is_server:
            self.visits[trained] += 1

    def learned(self, fed: Federation, block: Block, received: Tensor, passes: NDArray[np.int64]) -> Tensor:
        """[K, h], the shares of a block's clients after so many steps [K]."""
        shares, apart = self.shares[block], received[self.head] - self.kept[block]
        for step in range(passes.max()):
            active = np.flatnonzero(passes > step).tolist()
            some = block.rows(active)
            slope = fed.at_clients.gradients(some, self.mixed(some, received, shares[active]), self)[:, self.head]
            shares[active] = (shares[active] - self.rate * slope * apart[active]).clamp(0, 1)
        return shares

    def mixed(self, block: Block, received: Tensor, shares: Tensor) -> Tensor:
        """[K, P], the received model with the mixed heads of a block's clients."""
        models = received.repeat(len(block), 1)
        models[:, self.head] = torch.lerp(self.kept[block], received[self.head], shares)  # exact at 0 and at 1
        return models

    def evaluate(self, fed: Federation) -> None:
        """Each client's mixture on the client's test samples, and the global model on the whole test set."""

        def personal(block: Block, received: Tensor) -> Tensor:
            return self.mixed(block, received, self.shares[block])

        fed.report_personal(fed.evaluate_clients(self.weights, personal))
        fed.log(**{f"global_{fed.task.main}": fed.evaluate(self.weights).main})
