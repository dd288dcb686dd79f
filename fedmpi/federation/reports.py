"""Evaluations of models, and reports of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    weighted_mean_of,
)
from fedmpi.training.block import Block, Hooks, Phase

#: (a block of clients, the vector that the server has sent) -> their models [K, P].
Personal = Callable[[Block, Tensor], Tensor]
#: (a block of clients, their models [K, P]) -> vectors [K, ...] by name that their predictions read.
Known = Callable[[Block, Tensor], Mapping[str, Tensor]]


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

    def evaluate_clients(
        self, weights: Tensor, personal: Personal, predict: Prediction | None = None, known: Known | None = None
    ) -> Evaluation:
        """See `Federation.evaluate_clients`."""
        context, evaluator = self._context, self._context.evaluator
        received = context.distribute(weights)
        measured = evaluator.nothing()
        with self._measuring():
            for client in context.at_home().tolist():
                context.turn_to(client)
                block = context.alone(client)
                models = personal(block, received)
                vectors = {name: rows[0] for name, rows in known(block, models).items()} if known else {}
                evaluator.measure_client(models[0], client, measured, predict_with(predict, vectors))
        self._bring_together(measured)
        return evaluator.evaluation(measured)

    def gradients(self, block: Block, weights: Tensor, hooks: Hooks) -> Tensor:
        """As `Local.gradients`, for models that `evaluate_clients` measures; the batches do not count as steps."""
        context = self._context
        return context.trainer.gradients(block, weights.expand(len(block), -1), hooks, context.round.number)

    def evaluate_fine_tuned(self, weights: Tensor, hooks: Hooks, predict: Prediction, epochs: int) -> Evaluation:
        """Each client's model on the client's own samples, after fine-tuning of the global model by the client alone.

        The trained models are not kept, and no method gets them.

        Args:
            weights: [P], the server's model.
            hooks: of the fine-tuning; they may read the vector "received".
            predict: computes the output with a model.
            epochs: passes over the client's training samples.
        """
        context, evaluator, trainer = self._context, self._context.evaluator, self._context.trainer
        received, measured = context.distribute(weights), evaluator.nothing()
        phase, round = Phase("fine-tuning ", epochs=epochs), max(context.round.number, 1)
        with self._measuring():
            mine = context.at_home()
            longest_first = mine[np.argsort(-context.split.samples[mine], kind="stable")]
            for first in range(0, len(mine), trainer.at_once):
                block = context.block(longest_first[first : first + trainer.at_once])
                context.turn_to(int(block.clients[0]))
                block.give({"received": received})
                start = received.expand(len(block), -1)
                trained = trainer.train(block, start, hooks, round, context.rounds, phase).weights.clone()
                for k, client in enumerate(block.clients.tolist()):
                    evaluator.measure_client(trained[k], client, measured, predict_with(predict, block.row(k)))
        self._bring_together(measured)
        return evaluator.evaluation(measured)

    def values(self, weights: Tensor, personal: Personal) -> NDArray[np.float64]:
        """[clients], the main metric of every client's model on the whole test set; one evaluation per client.

        Args:
            weights, personal: as for `Federation.evaluate_clients`.
        """
        context = self._context
        received = context.distribute(weights)
        found = np.zeros(context.clients)
        with self._measuring():
            for client in context.at_home().tolist():
                context.turn_to(client)
                found[client] = context.evaluator.value(personal(context.alone(client), received)[0])
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
        if not self._context.world.is_server:
            return
        metric, (clients, values) = evaluation.measures.main, evaluation.of_known_clients
        known = values[~np.isnan(values)]
        if len(known):
            worst_first = np.sort(known) if metric.better == "higher" else np.sort(known)[::-1]
            shares = dict(zip((10, 50, 90), np.percentile(known, (10, 50, 90)).tolist(), strict=True))
            figures = {
                "mean": float(known.mean()),
                "std": float(known.std()),
                **{f"p{percent}": value for percent, value in shares.items()},
                "worst10": float(worst_first[: max(len(known) // 10, 1)].mean()),
            }
            main = evaluation.measures.task.main
            self.log(**{f"weighted_client_{main}": weighted_mean_of(values, self._context.split.samples[clients])})
            self.log(**{f"client_{main}_{name}": value for name, value in figures.items()})

    def report_personal(self, evaluation: Evaluation) -> None:
        """See `Federation.report_personal`."""
        self.report(evaluation)
        self.log(clients_trained=len(self._context.states.trained))

    def report_matched(self, models: Sequence[Evaluation], choice: Tensor) -> None:
        """Report the evaluations of several models. Client k uses the model `choice[k]`; -1: none yet.

        test_loss and the test metrics are client-matched: each client's model on the client's test samples. The
        column global_matched_accuracy (or that of another main metric) has each client's model on the whole test
        set, weighted by the client's training samples. Clients without a model are left out.
        """
        if self._context.world.is_server:
            chosen = choice.numpy()
            samples = np.where(chosen < 0, 0, self._context.split.samples)
            values = np.array([model.main for model in models])[chosen]
            mean = float(values @ samples / samples.sum()) if samples.any() else np.nan
            self.log(**{f"global_matched_{models[0].measures.task.main}": mean})
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
