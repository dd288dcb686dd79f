"""FedBABU: the head is not trained in the rounds.

Oh, Kim, Yun: FedBABU: Toward Enhanced Representation for Federated Image Classification. ICLR 2022.
https://arxiv.org/abs/2106.06042
"""

from __future__ import annotations

from fedmpi.algorithms.fedavg import FedAvg
from fedmpi.algorithms.fedper import head_and_body
from fedmpi.lazy import torch
from fedmpi.training.block import Phase
from fedmpi.typing import Cohort, Federation, Layout, Vectors


class FedBABU(FedAvg):
    """FedAvg of the body; the head keeps its initial weights in all rounds (Oh, Kim and Yun, 2022).

    The head is the last fully connected layer. All clients have the same random head, and train and send only the
    other layers. The global model is this head and the averaged body. With `--evaluate_fine_tuned EPOCHS`, each
    client fine-tunes this model, head and body, on its own samples before it is evaluated; the paper's personalised
    models are made in this way.
    """

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.head, self.body = head_and_body(fed.layout, type(self).__name__)
        self.untrained = self.weights[self.head].to(fed.device, copy=True)

    @property
    def trainings(self) -> tuple[Phase, ...]:
        return (Phase(columns=(self.body,)),)

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        _, body = head_and_body(layout, type(self).__name__)
        return [body], [body]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        received = fed.broadcast(self.weights[self.body])
        start = torch.cat((self.untrained, received))
        mean = fed.weighted_mean(cohort, received, columns=self.body)
        for block in fed.my_clients(cohort):
            local = fed.train(block, start, self, *self.trainings)
            mean.add(local.weights[:, self.body], block)
        whole = self.weights.clone()
        whole[self.body] = mean.reduce(empty=self.weights[self.body])
        self.server_step(fed, whole)
