"""Measurements of trained client models that no method asks for.

Each observer is given every model that a client has trained in a round (`fedmpi.federation.context.Observer`).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fedmpi.federation.client_state import INTERNAL
from fedmpi.federation.context import Context
from fedmpi.federation.evaluation import Prediction, predict_with
from fedmpi.policies import Cohort
from fedmpi.training.block import Block


class CohortMean:
    """The mean of the models of a round's cohort.

    Args:
        context: of the federation.
        cohort: of the round.
    """

    def __init__(self, context: Context, cohort: Cohort) -> None:
        self._mean = context.mean_over(cohort)

    def trained(self, block: Block, weights: Tensor) -> None:
        self._mean.add(weights, block)

    def reduce(self) -> Tensor:
        """[P] at the server, as in `WeightedMean.reduce`; a collective."""
        return self._mean.reduce()


class LastModels:
    """The last model of each client; the initial model at first.

    Args:
        context: of the federation.
        everyone: all clients with their weights.
        initial: [P] the model of a client that has not been trained.
    """

    def __init__(self, context: Context, everyone: Cohort, initial: Tensor) -> None:
        self._context = context
        self._everyone = everyone
        self._models = context.states.create(f"{INTERNAL}last model", initial, context.device)

    def trained(self, block: Block, weights: Tensor) -> None:
        self._models[block] = weights

    def reduce(self) -> Tensor:
        """[P] at the server, the mean of all models; a collective."""
        mean = self._context.mean_over(self._everyone)
        with self._context.doing("averaging all clients' models"):
            for client in self._context.at_home().tolist():
                block = self._everyone.block(np.array([client]))
                mean.add(self._models[block], block)
        return mean.reduce()


class KeptModels:
    """The models of a round's clients with weight, on the ranks that trained them.

    Attributes:
        models: client -> [P].
    """

    def __init__(self) -> None:
        self.models: dict[int, Tensor] = {}

    def trained(self, block: Block, weights: Tensor) -> None:
        counted = [k for k in block.undiverged() if block.mass[k]]
        self.models |= {int(block.clients[k]): weights[k].clone() for k in counted}


class LocalEvaluation:
    """Evaluates each trained client model on the client's test samples.

    Args:
        context: of the federation.
        predict: computes the output with a model.

    Attributes:
        column: its name, such as local_accuracy.
    """

    def __init__(self, context: Context, predict: Prediction) -> None:
        self._context = context
        self._predict = predict
        self.column = f"local_{context.evaluator.measures.task.main}"

    def trained(self, block: Block, weights: Tensor) -> None:
        ledger, evaluator = self._context.round.ledger, self._context.evaluator
        with self._context.doing("measuring what was trained", block), ledger.timed("evaluation_seconds"):
            found = [
                evaluator.value_of_client(model, client, predict_with(self._predict, block.row(k)))
                for k, (client, model) in enumerate(zip(block.clients.tolist(), weights, strict=True))
            ]
        ledger.record(block, {self.column: found})
