"""Base of the methods whose clients keep a part of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

from fedmpi.algorithms.base import Algorithm
from fedmpi.typing import Block, Cohort, Columns, Federation, Layout, Tensor, Trained, Vectors


class PartlyShared(Algorithm):
    """Federated averaging of a part of the model; the other part stays with each client.

    The kept part starts as in the initial model, and stays so in the server's model. A client is evaluated with the
    part it kept in its last round, and the current shared part.

    Attributes:
        own: the columns of the model's vector that each client keeps.
        shared: the other columns; only these are sent.
        kept: the kept part of each client.
    """

    takes_server_optimizer = takes_privacy = True

    @property
    def has_global_model(self) -> bool:
        return False

    @abstractmethod
    def split(self, layout: Layout) -> tuple[Columns, Columns]:
        """`own` and `shared`."""

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.own, self.shared = self.split(fed.layout)
        self.kept = fed.client_state("kept", self.weights[self.own])

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        _, shared = self.split(layout)
        return [shared], [shared]

    def round(self, fed: Federation, cohort: Cohort) -> None:
        self.average_shared(fed, cohort, partial(self.train_parts, fed))

    def average_shared(self, fed: Federation, cohort: Cohort, train: Callable[[Block, Tensor], Trained]) -> None:
        """Train the clients, keep their own parts, and average the shared part; a collective.

        Args:
            train: local training of a block's clients from [K, P].
        """
        received = fed.broadcast(self.weights[self.shared])
        mean = fed.weighted_mean(cohort, received, columns=self.shared)
        for block in fed.my_clients(cohort):
            local = train(block, self.personal(block, received))
            mean.add(local.weights[:, self.shared], block)
            self.kept[block] = local.weights[:, self.own]
        whole = self.weights.clone()
        whole[self.shared] = mean.reduce(empty=self.weights[self.shared])
        self.server_step(fed, whole)

    def train_parts(self, fed: Federation, block: Block, start: Tensor) -> Trained:
        """Local training of a block's clients from `start` [K, P]."""
        return fed.train(block, start, self)

    def personal(self, block: Block, received: Tensor) -> Tensor:
        """[K, P], the models of a block's clients: the kept part of each, with the received part [n]."""
        kept = self.kept[block]
        models = kept.new_empty(len(block), kept.shape[1] + len(received))
        models[:, self.own], models[:, self.shared] = kept, received
        return models

    def evaluate(self, fed: Federation) -> None:
        """Each client's model on the client's test samples."""
        fed.report_personal(fed.evaluate_clients(self.weights[self.shared], self.personal))
