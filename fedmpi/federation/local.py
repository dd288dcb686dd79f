"""The work of clients on the ranks that train them: training, gradients, features, losses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.federation.context import Context
from fedmpi.federation.mean import diverged, total
from fedmpi.federation.placement import CostModel
from fedmpi.policies import Cohort
from fedmpi.randomness import globals_kept
from fedmpi.training.block import GRADIENT, OVERWRITTEN, WHOLE, Block, Hooks, Phase
from fedmpi.training.symmetry import Group
from fedmpi.training.trainer import Features


@dataclass
class Trained:
    """The result of `Federation.train`: K models, and their mean training losses [K] and optimizer steps [K].

    The next clients are trained in the memory of `weights` [K, P]: use or clone it before the next call of `train`.
    Reading, averaging or keeping it later raises an error. A `direction` that is not elementwise may change the named
    vectors [K, ...] of the block in place; then `rows` has them after the training. Otherwise it is empty.
    """

    loss: NDArray[np.float64]
    steps: NDArray[np.int64]
    rows: Mapping[str, Tensor]
    _weights: Tensor
    _block: Block
    _is_current: bool = True

    @property
    def weights(self) -> Tensor:
        if not self._is_current:
            raise RuntimeError(OVERWRITTEN)
        return self._weights

    def expire(self) -> None:
        """Mark the weights as invalid, because their memory is reused."""
        self._is_current = False
        self._block.expired = self._weights


class Local:
    """The work of the clients that are trained on this rank.

    Args:
        context: of the federation.

    Attributes:
        at_once: K, the largest number of clients that a rank trains together.
        has_features: whether the network is a `Backbone`, so that a loss can use its features.
        ends_in_head: whether the network ends in a fully connected layer, the layout's head.
    """

    def __init__(self, context: Context) -> None:
        self.at_once = context.trainer.at_once
        self.has_features = context.trainer.model.has_features
        self.ends_in_head = context.trainer.model.ends_in_head
        self._context = context
        self._trained: Trained | None = None

    @property
    def feature_shape(self) -> torch.Size:
        """Shape of the features of one sample."""
        return self._context.trainer.feature_shape

    def my_clients(self, cohort: Cohort, phase: Phase = WHOLE) -> Iterator[Block]:
        """See `Federation.my_clients`."""
        context, world, ledger = self._context, self._context.world, self._context.round.ledger
        at_once = context.trainer.at_once
        if cohort is not ledger.cohort:
            world.vouch({"the method: ranks gave `my_clients` different cohorts": cohort.checksum})
        steps = self.count_steps(cohort, phase)
        ranks = self._place(cohort, steps)
        began = time.perf_counter()
        moved = context.states.gather(cohort.clients, ranks)
        if moved:
            took = time.perf_counter() - began
            ledger.observe(took, {"moved_bytes": moved, "moving_seconds": took})
        if not world.is_worker:
            context.be_idle()
        mine = np.flatnonzero(ranks == world.rank)
        mine = mine[np.argsort(-steps[mine], kind="stable")]
        for first in range(0, len(mine), at_once):
            some = mine[first : first + at_once]
            began = time.perf_counter()
            context.turn_to(int(cohort.clients[some[0]]))
            yield cohort.block(some)
            self.show_last()
            took, me = time.perf_counter() - began, world.rank - world.workers[0]
            ledger.observe(took, context.costs.observation(me, steps[some], took))
        context.reseed()

    def train(self, block: Block, start: Tensor, hooks: Hooks, phase: Phase = WHOLE, **vectors: Tensor) -> Trained:
        """See `Federation.train`."""
        context, ledger = self._context, self._context.round.ledger
        self.forget_trained()
        with context.doing("training", block), ledger.timed("train_seconds"):
            block.give(vectors)
            start = start.expand(len(block), -1)
            work = context.trainer.train(block, start, hooks, context.round.number, context.rounds, phase)
        lost = {} if work.is_finite else diverged(work.weights)
        lost = {int(block.clients[k]): found for k, found in lost.items()}
        block.diverged |= lost.keys()
        ledger.record_work(block, work, lost)
        block.expired = None
        self._show(block, work.weights, phase)
        self._trained = Trained(work.loss, work.steps, work.rows, work.weights, block)
        return self._trained

    def show_last(self) -> None:
        """Show observers what clients have trained last in this round, if all their phases have names."""
        round = self._context.round
        if round.unobserved:
            block, weights = round.unobserved
            round.unobserved = None
            if not round.observed.issuperset(block.clients.tolist()):
                self._observe(block, weights)

    def forget_trained(self) -> None:
        """Mark the last trained weights as invalid, because their memory is reused."""
        if self._trained is not None:
            self._trained.expire()

    def gradients(self, block: Block, weights: Tensor, hooks: Hooks, **vectors: Tensor) -> Tensor:
        """[K, d]: the gradient, at `weights` [P] or [K, P], of each client's mean loss over its training samples.

        The loss is that of the training: the hooks' loss, batch by batch, in training mode, without `direction`,
            weight decay and clipping. It is zero for a client without samples. The batches count as steps in
            /clients.
        """
        context, ledger = self._context, self._context.round.ledger
        self.forget_trained()
        began = time.perf_counter()
        with context.doing("measuring gradients", block), ledger.timed("train_seconds"):
            block.give(vectors)
            found = context.trainer.gradients(block, weights.expand(len(block), -1), hooks, context.round.number)
        steps = context.trainer.count_steps(block.clients, None, GRADIENT)
        share = steps / max(steps.sum(), 1)
        ledger.add_steps(block, steps, (time.perf_counter() - began) * share)
        return found

    def features(self, block: Block, weights: Tensor, of: Features | None = None) -> Tensor:
        """[K, n, ...]: the features of the clients' training samples, by the network with `weights` [P] or [K, P].

        In evaluation mode, without augmentation. The features of client k are in rows [k, :n_k], in the order of
        `Batch.place`.

        Args:
            of: computes the features [B, ...] of a batch; None: those of the extractor.
        """
        context = self._context
        with context.doing("extracting features", block), context.round.ledger.timed("train_seconds"):
            return context.trainer.features(block, weights, of)

    def targets(self, block: Block, beyond: int = -1) -> Tensor:
        """[K, n, ...]: the targets of the clients' training samples, in the order of `Batch.place`.

        Args:
            beyond: fills the rows [k, n_k:].
        """
        return self._context.trainer.targets(block, beyond)

    def losses(self, block: Block, models: Tensor, samples: Sequence[NDArray[np.int64]] | None = None) -> Tensor:
        """[K, M]: the mean loss of each of `models` [M, P] on samples of each client of the block, forward only.

        NaN for a client without such samples.

        Args:
            samples: for each client of the block, the numbers of its samples; None: those on which it trains.
        """
        context, clients = self._context, block.clients.tolist()
        chosen: Sequence[NDArray[np.int64] | None] = samples or [None] * len(clients)
        with context.doing("measuring losses", block), context.round.ledger.timed("train_seconds"), globals_kept():
            measure = context.evaluator.training_losses
            found = [measure(client, models, some) for client, some in zip(clients, chosen, strict=True)]
        return torch.tensor(found)

    def everyone(self) -> Iterator[Block]:
        """All clients, one at a time, each on one of the ranks that train; for evaluations."""
        context = self._context
        with context.doing("measuring all clients"), context.round.ledger.timed("evaluation_seconds"):
            for client in self._shared_out(np.arange(context.clients)).tolist():
                context.turn_to(client)
                yield context.alone(client)
        context.reseed()

    def total(self, terms: Sequence[Sequence[Tensor]], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Sums over all ranks of small tensors of several kinds, one per shape; bit-identical for any placement.

        Refused under `--privacy`.

        Args:
            terms: any number of terms of this rank. Each has one tensor of each kind.
            shapes: of the kinds.

        Returns: The sums in float64, in host memory, on every rank; all NaN if a term is not finite.
        """
        self._context.refuse_if_private("fed.at_clients.total")
        with self._context.doing("summing"):
            return total(self._context.world, terms, shapes)

    def losses_of_all(self, clients: NDArray[np.int64], models: Tensor) -> NDArray[np.float64]:
        """[m, M]: the same for these clients, on every rank. All ranks must have `models`.

        Refused under `--privacy`.
        """
        self._context.refuse_if_private("fed.at_clients.losses_of_all")
        context, world = self._context, self._context.world
        losses = np.zeros((len(clients), len(models)))
        with context.doing("measuring losses"):
            for position in self._shared_out(clients):
                losses[position] = context.evaluator.training_losses(int(clients[position]), models)
        world.sum(losses)
        context.reseed()
        return losses

    def count_steps(self, cohort: Cohort, phase: Phase = WHOLE) -> NDArray[np.int64]:
        """[m] optimizer steps that each does in one training."""
        return self._context.trainer.count_steps(cohort.clients, cohort.completed, phase)

    def train_on(self, shards: Sequence[NDArray[np.int64]]) -> None:
        """From now on the clients train on these samples. Their weights in means do not change."""
        self._context.trainer.deal(shards)
        self._context.evaluator.deal(shards)

    def unit_groups(self) -> list[Group]:
        """The hidden units of the model that can be permuted, in the order of the forward pass.

        Units that frozen layers produce or read cannot be permuted.

        Raises:
            BadInput: the model calls a function that is not supported.
        """
        return self._context.trainer.unit_groups()

    def _show(self, block: Block, weights: Tensor, phase: Phase) -> None:
        """Show observers the models [K, P], at once if they are of a phase without a name."""
        context, round = self._context, self._context.round
        if not (context.observers or round.observers):
            return
        clients = {*block.clients.tolist()}
        if round.unobserved and clients.isdisjoint(round.unobserved[0].clients.tolist()):
            self.show_last()
        round.unobserved = (block, weights.clone()) if phase.name else None
        if not phase.name:
            self._observe(block, weights)

    def _observe(self, block: Block, weights: Tensor) -> None:
        context, round = self._context, self._context.round
        round.observed.update(block.clients.tolist())
        for observer in (*context.observers, *round.observers):
            observer.trained(block, weights)

    def _shared_out(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of those of `clients` whose samples this rank looks at, where no rank has a state of theirs."""
        world = self._context.world
        placement, _ = CostModel(len(world.workers)).place(self._context.split.samples[clients])
        return np.flatnonzero(np.array(world.workers)[placement] == world.rank)

    def _place(self, cohort: Cohort, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """[m] the ranks that train the cohort's clients, the same on every rank."""
        states, costs, world = self._context.states, self._context.costs, self._context.world
        first, kept = world.workers[0], states.bytes
        home = states.home(cohort.clients) - first if kept else None
        placement, expected = costs.place(steps, home, kept)
        if costs.is_fitted:
            world.waiting.expect(float(expected.max()))
        self._context.round.ledger.predict(expected if costs.is_fitted else np.full(len(expected), np.nan))
        return first + placement
