"""Trains one client after another in one flat model: the fastest way for networks that use a whole core."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedmpi.training.block import WHOLE, Block, Hooks, Phase, Work, needs_whole
from fedmpi.training.clientwise import Keyed
from fedmpi.training.flat import Net, Pass
from fedmpi.training.layout import Entry
from fedmpi.training.samples import Batch
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import Trainer, direction_of, losses_of, read

# From this number of parameters on, updating tensor by tensor is faster than storing a flat gradient.
LARGE = 100_000
# Number of elements of a tensor that stay in a core's cache between operations of an update.
CACHED = 1 << 17


@dataclass
class Piece:
    """Columns of a client's vectors: [1, n] of the weights, of the received weights, and of vectors for the hooks."""

    columns: slice
    weights: Tensor
    start: Tensor
    block: Block


class Upcoming:
    """A client's batches in their order: `upcoming[0]` is that of step `number`, `upcoming[1]` the next one."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.number = 0
        self._batches = batches
        self._drawn: deque[Batch] = deque()

    def __getitem__(self, ahead: int) -> Batch:
        while len(self._drawn) <= ahead:
            self._drawn.append(next(self._batches))
        return self._drawn[ahead]

    def advance(self) -> None:
        """Begin the next step."""
        self._drawn.popleft()
        self.number += 1


class PlainTrainer(Trainer):
    """Trains one client after another. The model's vector holds the result of the last client."""

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int, phase: Phase = WHOLE) -> Work:
        began = time.perf_counter()
        client, model = int(block.clients[0]), self.model
        net, is_whole, settings = Net(model), needs_whole(hooks), phase.settings(self.settings)
        if is_whole:
            block = block.with_own_rows()
        rows = block.row(0)
        key = int(self._dropout_keys(phase, round, block.clients)[0])
        count = int(self.count_steps(block.clients, block.completed, phase)[0])
        columns = self._prepare(phase, lone_sample=bool(self._shards.sizes[client] == 1))
        seen: list[Tensor] = []  # losses of samples
        mass: list[Tensor] = []  # their weights, if they differ
        model.load(start[0])
        self.seed_others(key)
        keyed, batches = Keyed(key), Upcoming(self._batches(client, round, phase))
        compute = partial(losses_of, hooks, net, start[0], rows)

        def passes(ahead: int = 0) -> Iterator[Pass]:
            return self._passes(batches[ahead], batches.number + ahead, keyed, compute, phase)

        def noted() -> Iterator[Pass]:
            for losses, shares in passes():
                seen.append(losses.detach())
                yield losses, shares

        @torch.enable_grad()
        def further(weights: Tensor, ahead: int) -> Tensor:
            with model.elsewhere(weights[0]):
                return model.further_gradient(passes(ahead))

        if is_whole:
            block.further = further
        step = self._step(block, start, hooks, settings, columns)
        # A share of the steps follows the schedule of all of them; Centralized takes more than a client has.
        whole = max(int(self.count_steps(block.clients, None, phase)[0]), count)
        for lr in settings.rates(round, rounds, whole)[:count].tolist():
            step(noted(), lr)
            weight = batches[0].weight
            mass += [] if weight is None else [weight]
            batches.advance()
        mean = (
            _mean(torch.cat(seen), torch.cat(mass) if mass else None)
            if seen
            else model.weights.new_full((), math.nan)
        )
        is_finite, (loss,) = read(model.weights, mean)
        seconds = time.perf_counter() - began
        kept = block.vectors if is_whole else {}
        return Work(model.weights, loss, np.array([count]), np.array([seconds]), is_finite, kept)

    def _step(
        self,
        block: Block,
        start: Tensor,
        hooks: Hooks,
        settings: LocalTraining,
        trained: tuple[slice, ...],
    ) -> Callable[[Iterator[Pass], float], None]:
        """Makes a function that takes a step in the columns `trained`.

        Its arguments are the forward passes of the step, and the learning rate.
        """
        model, optimizer, has_direction = self.model, self._fresh_optimizer(settings), hooks.changes_direction
        is_whole = needs_whole(hooks)
        count = model.layout.parameters
        weights, start = model.weights[:, :count], start[:, :count]
        model.select(trained)

        def cut(columns: slice) -> Piece:
            received = start[:, columns] if has_direction else start
            return Piece(columns, weights[:, columns], received, block.columns(columns, count))

        def direct(piece: Piece, gradient: Tensor) -> Tensor:
            if not has_direction:
                return gradient
            return direction_of(hooks, gradient, piece.weights, piece.start, piece.block)

        whole = Piece(slice(count), weights, start, block)
        runs = [whole] if is_whole else [cut(columns) for columns in trained]

        def at_once(passes: Iterator[Pass], lr: float) -> None:
            model.backward_over(passes)
            with torch.no_grad():
                follow_gradient(lr)

        def follow_gradient(lr: float) -> None:
            optimizer.advance()
            steps = [direct(run, model.gradient[:, run.columns]) for run in runs]
            if is_whole:
                steps = [steps[0][:, columns] for columns in trained]
            for columns, step in zip(trained, self._clipped(steps), strict=True):
                optimizer.step(weights[:, columns], step, lr, columns)

        pieces: dict[str, list[Piece]] = {}  # of each tensor: cut once, for all steps

        def update_part(lr: float, entry: Entry, parameter: Tensor, gradient: Tensor) -> None:
            in_order = gradient.permute(0, 2, 3, 1) if entry.channels_last else gradient
            if entry.name not in pieces:
                end = entry.offset + entry.size
                begins = range(entry.offset, end, CACHED)
                pieces[entry.name] = [cut(slice(begin, min(begin + CACHED, end))) for begin in begins]
            parts = in_order.reshape(1, -1).split(CACHED, 1)
            with torch.no_grad():
                for piece, part in zip(pieces[entry.name], parts, strict=True):
                    optimizer.step(piece.weights, direct(piece, part), lr, piece.columns)

        def descend(lr: float, entry: Entry, parameter: Tensor, gradient: Tensor) -> None:
            parameter.add_(gradient, alpha=-lr)  # where it lies

        update = descend if settings.is_plain_sgd and not has_direction else update_part

        def in_parts(passes: Iterator[Pass], lr: float) -> None:
            (only,) = passes
            optimizer.advance()
            with torch.no_grad():
                model.backward_in_parts(only, partial(update, lr))

        is_elementwise = hooks.direction_is_elementwise or not has_direction
        separable = settings.clip_norm is None and settings.accumulate == 1 and is_elementwise
        return in_parts if separable and count >= LARGE else at_once


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()  # NaN without weight
