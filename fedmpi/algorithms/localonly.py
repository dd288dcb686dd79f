"""Training without any federation: the lower reference of a comparison."""

from __future__ import annotations

import numpy as np

from fedmpi.algorithms.base import Algorithm
from fedmpi.typing import Block, Cohort, Federation, Layout, Tensor, Vectors


class LocalOnly(Algorithm):
    """Every client trains a model of its own on its own samples; nothing is ever sent.

    A client trains in the rounds in which it is chosen, as under any other method; with --sampler All all of them do
    in every round. Measured is each client's own model on the client's own shard of the test set, and after the last
    round on all of it as well: global_matched_accuracy weights the clients by their training samples,
    global_matched_accuracy_std is the spread over the clients. There is no global model: what the results file calls
    so are the weights that everyone started from.
    """

    takes_compression = False  # nothing is sent

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
            accuracies = fed.reports.accuracies(self.weights, own)
            fed.log(global_matched_accuracy=float(accuracies @ fed.samples / fed.samples.sum()))
            fed.log(global_matched_accuracy_std=float(np.std(accuracies)))
