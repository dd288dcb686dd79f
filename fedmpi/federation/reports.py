"""Evaluations of models, and reports of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.federation.context import Context
from fedmpi.federation.evaluation import (
    Evaluation,
    Prediction,
    adjusted_rand_index,
    predict_with,
    weighted_accuracy,
)
from fedmpi.training.block import Block

#: (a block of clients, the vector that the server has sent) -> their models [K, P].
Personal = Callable[[Block, Tensor], Tensor]


class Reports:
    """Evaluates models on the ranks that train, and reports the results.

    Args:
        context: of the federation.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    # Measurements

    def evaluate(self, weights: Tensor, predict: Prediction | None = None, **vectors: Tensor) -> Evaluation:
        """See `Federation.evaluate`."""
        context, evaluator = self._context, self._context.evaluator
        received = context.distribute(weights)
        others = {name: context.distribute(vector) for name, vector in vectors.items()}
        measured = evaluator.nothing()
        if context.world.is_worker:
            with self._measuring():
                evaluator.measure(received, *context.part, measured, predict_with(predict, others))
        self._bring_together(measured)
        return evaluator.evaluation(measured)

    def evaluate_clients(self, weights: Tensor, personal: Personal) -> Evaluation:
        """See `Federation.evaluate_clients`."""
        context, evaluator = self._context, self._context.evaluator
        received = context.distribute(weights)
        measured = evaluator.nothing()
        with self._measuring():
            for client in context.at_home().tolist():
                context.turn_to(client)
                evaluator.measure_client(personal(context.alone(client), received)[0], client, measured)
        self._bring_together(measured)
        return evaluator.evaluation(measured)

    def accuracies(self, weights: Tensor, personal: Personal) -> NDArray[np.float64]:
        """[clients], accuracy of every client's model on the whole test set; costs one evaluation per client.

        Args:
            weights, personal: as for `Federation.evaluate_clients`.
        """
        context = self._context
        received = context.distribute(weights)
        found = np.zeros(context.clients)
        with self._measuring():
            for client in context.at_home().tolist():
                context.turn_to(client)
                found[client] = context.evaluator.accuracy(personal(context.alone(client), received)[0])
        self._bring_together(found)
        return found

    def training_hits(self, weights: Tensor, shards: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """[clients]: number of each client's training samples that the model `weights` [P] classifies correctly.

        On every rank; the work is distributed over the ranks that train.
        """
        context = self._context
        received = context.distribute(weights)
        hits = np.zeros(len(shards))
        if context.world.is_worker:
            with self._measuring():
                hits = context.evaluator.training_hits(received, shards, *context.part)
        self._bring_together(hits)
        return hits

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with self._context.doing("evaluation"), self._context.round.ledger.timed("evaluation_seconds"):
            yield

    def _bring_together(self, measured: NDArray) -> None:
        self._context.world.sum(measured)
        self._context.reseed()

    # Reports

    def log(self, **values: float) -> None:
        """See `Federation.log`."""
        self._context.round.ledger.log(values)

    def report(self, evaluation: Evaluation) -> None:
        """See `Federation.report`."""
        self._context.round.ledger.evaluation = evaluation
        known = evaluation.client_accuracy[~np.isnan(evaluation.client_accuracy)]
        if self._context.world.is_server and len(known):
            weighted = weighted_accuracy(evaluation.client_accuracy, self._context.split.samples)
            self.log(weighted_client_accuracy=weighted)
            shares = dict(zip((10, 50, 90), np.percentile(known, (10, 50, 90)).tolist(), strict=True))
            self.log(client_accuracy_mean=float(known.mean()), client_accuracy_std=float(known.std()))
            self.log(**{f"client_accuracy_p{percent}": value for percent, value in shares.items()})

    def report_personal(self, evaluation: Evaluation) -> None:
        """See `Federation.report_personal`."""
        self.report(evaluation)
        self.log(clients_trained=int((self._context.states.home >= 0).sum()))

    def report_matched(self, models: Sequence[Evaluation], choice: Tensor) -> None:
        """Report the evaluations of several models. Client k uses the model `choice[k]`; -1: none yet.

        test_accuracy and test_loss are client-matched: each client's model on the client's test samples. The column
        global_matched_accuracy has each client's model on the whole test set, weighted by the client's training
        samples. Clients without a model are left out.
        """
        if self._context.world.is_server:
            chosen = choice.numpy()
            samples = np.where(chosen < 0, 0, self._context.split.samples)
            accuracy = np.array([model.accuracy for model in models])[chosen]
            self.log(global_matched_accuracy=float(accuracy @ samples / samples.sum()) if samples.any() else np.nan)
            self.report(Evaluation.matched(models, chosen))

    def report_clusters(self, assignment: Tensor, models: int) -> None:
        """See `Federation.report_clusters`."""
        if self._context.world.is_server:
            groups = self._context.split.groups
            found = assignment.numpy().copy()
            known = found >= 0
            sizes = np.bincount(found[known], minlength=models)
            self.log(**{f"cluster_size_{number}": int(size) for number, size in enumerate(sizes)})
            if groups is not None:
                self.log(adjusted_rand_index=adjusted_rand_index(found[known], groups[known]))
            self._context.round.ledger.clusters = found
