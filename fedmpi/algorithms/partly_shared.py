"""What methods have in common whose clients keep a part of the model to themselves."""

from __future__ import annotations

from abc import abstractmethod

from fedmpi.algorithms.base import Algorithm
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Trained, Vectors


class PartlyShared(Algorithm):
    """Federated averaging of a part of the model; the other part stays with each client.

    What is kept starts as in the initial model, and so it remains in the server's. A client is measured with what it
    keeps after its own last round and with what the server has now.

    Attributes:
        own: the columns of the model's vector that each client keeps: its beginning or its end.
        shared: the others, which alone are sent.
        kept: what each client keeps.
    """

    takes_server_optimizer = takes_privacy = True

    @abstractmethod
    def split(self, layout: Layout) -> tuple[slice, slice]:
        """`own` and `shared`."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.own, self.shared = self.split(fed.layout)
        self.kept = fed.client_state("kept", self.weights[self.own])

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        _, shared = self.split(layout)
        return [shared], [shared]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        received = fed.broadcast(self.weights[self.shared])
        mean = fed.weighted_mean(cohort, received, columns=self.shared)
        for block in fed.my_clients(cohort):
            local = self.train_parts(fed, block, self.personal(block, received))
            mean.add(local.weights[:, self.shared], block)
            self.kept[block] = local.weights[:, self.own]
        whole = self.weights.clone()
        whole[self.shared] = mean.reduce(empty=self.weights[self.shared])
        self.server_step(fed, whole)

    def train_parts(self, fed: Federation, block: Block, start: Tensor) -> Trained:
        """Local training of a block's clients from `start` [K, P]."""
        return fed.train(block, start, self)

    def personal(self, block: Block, received: Tensor) -> Tensor:
        """[K, P], the models of a block's clients: what each keeps, with what it received [n]."""
        kept = self.kept[block]
        models = kept.new_empty(len(block), kept.shape[1] + len(received))
        models[:, self.own], models[:, self.shared] = kept, received
        return models

    def evaluate(self, fed: Federation) -> None:
        """Each client's model on the client's own test shard."""
        fed.report_personal(fed.evaluate_clients(self.weights[self.shared], self.personal))
