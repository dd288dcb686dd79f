"""Training without federation: the lower baseline of a comparison."""

from __future__ import annotations

import numpy as np

from fedmpi.algorithms.base import Algorithm
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


class LocalOnly(Algorithm):
    """Every client trains a model of its own on its own samples; nothing is ever sent.

    A client trains in the rounds in which it is chosen, as with any other method. With --sampler All, all clients
    train in every round. Each client's model is evaluated on the client's local test set. After the last round it is
    also evaluated on the whole test set: global_matched_accuracy is the mean weighted by the clients' training
    samples, and global_matched_accuracy_std is the standard deviation over clients. There is no global model; in its
    place, the results file has the initial weights.
    """

    takes_compression = False  # nothing is sent

    @property
    def has_global_model(self) -> bool:
        return False

    def setup(self, fed: Federation) -> None:
        super().setup(fed)
        self.own = fed.client_state("own", fed.initial_weights())

    def payload(self, layout: Layout) -> tuple[Vectors, Vectors]:
        return [], []

    def round(self, fed: Federation, cohort: Cohort) -> None:
        for block in fed.my_clients(cohort):
            self.own[block] = fed.train(block, self.own[block], self).weights

    def evaluate(self, fed: Federation) -> None:
        def own(block: Block, weights: Tensor) -> Tensor:
            return self.own[block]

        fed.report_personal(fed.evaluate_clients(self.weights, own))
        if not fed.has_round(fed.round + 1):
            values, column = fed.reports.values(self.weights, own), f"global_matched_{fed.task.main}"
            fed.log(**{column: float(values @ fed.samples / fed.samples.sum())})
            fed.log(**{f"{column}_std": float(np.std(values))})
