"""Base of the methods whose clients keep a part of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from fedmpi.algorithms.base import Algorithm
from fedmpi.lazy import torch
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
        from fedmpi.training.layout import runs

        super().setup(fed)
        self.own, self.shared = self.split(fed.layout)
        self.own_runs, self.shared_runs = runs(self.own), runs(self.shared)
        self.kept = fed.client_state("kept", self.kept_at_first()[self.own])

    def kept_at_first(self) -> Tensor:
        """[P], the model whose own part every client keeps at first."""
        return self.weights

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
            mean.add(_taken(local.weights, self.shared_runs), block)
            self.kept[block] = _taken(local.weights, self.own_runs)
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
        _put(models, self.own_runs, kept)
        _put(models, self.shared_runs, received)
        return models

    def evaluate(self, fed: Federation) -> None:
        """Each client's model on the client's test samples."""
        fed.report_personal(fed.evaluate_clients(self.weights[self.shared], self.personal))


def _taken(models: Tensor, runs: Sequence[slice]) -> Tensor:
    """[K, n], these columns of models [K, P]; a view of them if they are contiguous."""
    return models[:, runs[0]] if len(runs) == 1 else torch.cat([models[:, run] for run in runs], 1)


def _put(models: Tensor, runs: Sequence[slice], values: Tensor) -> None:
    """Write `values` [n] or [K, n] to these columns of models [K, P]."""
    first = 0
    for part in (models[:, run] for run in runs):
        part.copy_(values[..., first : first + part.shape[1]])
        first += part.shape[1]
