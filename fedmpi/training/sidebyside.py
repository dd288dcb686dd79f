"""Trains several clients at once: one call of the network computes a step of all, by `torch.vmap` over their weights.

With a small network, the overhead between operations dominates; with K clients in one operation it occurs once.
Clients with different numbers of samples share a step by padding: only the real rows of a batch count. Clients are
sorted by their number of steps, so that finished clients are at the end and are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from fedmpi.training.block import WHOLE, Block, Hooks, Phase, Work, needs_whole
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.compiled import Compiler, fingerprint
from fedmpi.training.flat import Net
from fedmpi.training.layout import Entry, aligned_rows
from fedmpi.training.samples import Batch
from fedmpi.training.trainer import LocalWork, Trainer, check_losses

# Batches in memory for further gradients, which may be on later batches.
BATCHES_KEPT = 3


@dataclass
class Step:
    """The batches [K, B, ...] of one step, of which the first `counts` [K] samples in each row are real."""

    number: int
    batch: Batch
    place: Tensor
    counts: NDArray[np.int64]


class Inputs(NamedTuple):
    """What the forward and backward pass of a step reads; every tensor has a row per client.

    Attributes:
        trained: the parameters that are trained.
        kept: the other parameters.
        statistics: the running statistics.
        x, y, sample, place: the batches [K, B, ...].
        weight: [K, B] the weights of the samples; None: all count alike.
        counts: [K] the number of first rows of each batch that are no padding.
        keys: [K] for `ClientWise`.
        start: [K, P] the received weights.
        vectors: the rows for the hooks.
        unsent: tensors of the network that are not part of a model's vector.
    """

    trained: list[Tensor]
    kept: list[Tensor]
    statistics: list[Tensor]
    x: Tensor
    y: Tensor
    sample: Tensor
    place: Tensor
    weight: Tensor | None
    counts: Tensor
    keys: Tensor
    start: Tensor
    vectors: dict[str, Tensor]
    unsent: dict[str, Tensor]


class Pass(NamedTuple):
    """The result of the forward and backward pass of a step.

    Attributes:
        gradients: of the parameters that are trained.
        loss: [K] the mean over the real rows.
        mass: [K] the weight of the client's samples (usually their number).
        statistics: new values of running statistics.
    """

    gradients: list[Tensor]
    loss: Tensor
    mass: Tensor
    statistics: list[Tensor]


class SideBySideTrainer(Trainer):
    """Trains up to `at_once` clients (at least two) in one batched call, which may be compiled.

    A client's result must not depend, in any bit, on the clients that are trained with it. On a CPU, matrix products
    fulfil this if there are at least two clients, because one product and several products use different code. The
    bits of convolutions depend on the number of groups, which is the number of clients. Products in bfloat16 use
    other code above a certain total size, and compiled code is made for one number of rows. So there is a minimum
    number of rows, 2 or `at_once`: a smaller block is filled up with copies of its last client, and some finished
    clients continue to train, with their results restored afterwards. `ClientWise` handles what depends on the row of
    a client.
    """

    def __init__(self, work: LocalWork, at_once: int, is_compiled: bool = False) -> None:
        super().__init__(work, at_once)
        model = work.model
        convolves = any(isinstance(layer, _ConvNd) for layer in model.module.modules())
        self._compiler = Compiler(model.device) if is_compiled else None
        self._fewest = at_once if convolves or model.in_bf16 or self._compiler else 2
        layout = model.layout
        self._weights = aligned_rows(at_once, layout.size, model.device)
        self._gradient = self._new_gradients(at_once)
        self._parameters = [entry for entry in layout.entries if entry.is_parameter]  # those that a phase trains
        self._others: list[Entry] = []
        self._statistics = [entry for entry in layout.entries if not entry.is_parameter]
        # A shared vector is repeated as one row per client if bits of products depend on the number of rows.
        self._unsent = model.unsent if model.device.type == "cpu" else {}

    def deal(self, shards: Sequence[NDArray[np.int64]]) -> None:
        super().deal(shards)
        self._sizes = np.array([len(shard) for shard in self._shards])
        self._starts = np.minimum(np.cumsum(self._sizes) - self._sizes, self._sizes.sum() - 1)
        self._shards_in_a_row = np.concatenate(self._shards)

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int, phase: Phase = WHOLE) -> Work:
        steps = self.count_steps(block.clients, block.completed, phase)
        if (np.diff(steps) > 0).any():
            longest_first = np.argsort(-steps, kind="stable")
            work = self.train(block.rows(longest_first.tolist()), start[longest_first], hooks, round, rounds, phase)
            return work.of(np.argsort(longest_first))
        if len(block) < self._fewest:
            filled = [*range(len(block)), *[len(block) - 1] * (self._fewest - len(block))]
            work = self.train(block.rows(filled), start[filled], hooks, round, rounds, phase)
            kept = work.of(slice(len(block)))
            kept.seconds *= work.steps.sum() / max(kept.steps.sum(), 1)
            return kept
        began = time.perf_counter()
        settings, is_whole, trained = phase.settings(self.settings), needs_whole(hooks), self._select(phase)
        lr, optimizer = settings.rate(round, rounds), self._fresh_optimizer(settings)
        # w -= lr g needs no gradient in one piece.
        is_plain = not hooks.changes_direction and settings.is_plain_sgd
        if is_whole:
            block = block.with_own_rows()
        keys = torch.from_numpy(self._dropout_keys(phase, round, block.clients)).to(self.model.device)
        total = torch.zeros(len(block), device=self.model.device)
        seen = torch.zeros(len(block), dtype=torch.float64, device=self.model.device)
        self._weights[: len(block)].copy_(start)
        self.model.reset_counters()
        step_of = self._steps(block.clients, round, phase)
        both_passes = self._both_passes(hooks, block, phase)

        def compute(number: int, rows: slice, weights: Tensor, statistics: list[Tensor]) -> Pass:
            step, here = step_of(number, rows.stop), block.rows(rows)
            return both_passes(self._inputs(step, here, weights, statistics, keys[rows], start[rows]))

        @torch.enable_grad()
        def further(number: int, rows: slice, weights: Tensor, ahead: int) -> Tensor:
            there = self._elsewhere[rows].copy_(weights)
            # Copies, because a forward pass may change them in place.
            statistics = [entry.view(self._weights[rows]).clone() for entry in self._statistics]
            with self.model.counters_kept():
                done = compute(number + ahead, rows, there, statistics)
            return self._in_one_piece(done.gradients, self._new_gradients(rows.stop))

        # These must not change for clients that are finished, and only fill up the block.
        results = [self._weights, *(block.vectors.values() if is_whole else ())]
        for number in range(int(steps.max(initial=0))):
            active = int((steps > number).sum())
            rows = slice(max(active, self._fewest))
            put_back = [result[active : rows.stop].clone() for result in results]
            weights = self._weights[rows]
            statistics = [entry.view(weights) for entry in self._statistics]
            done = compute(number, rows, weights, statistics)
            with torch.no_grad():
                total[:active] += (done.loss * done.mass)[:active]
                seen[:active] += done.mass[:active]
                for old, new in zip(statistics, done.statistics, strict=True):
                    old.copy_(new)
                if is_plain:
                    leaves = [entry.view(weights) for entry in self._parameters]
                    torch._foreach_add_(leaves, done.gradients, alpha=-lr)
                else:
                    gradient = self._in_one_piece(done.gradients, self._gradient[rows])
                    whole, here = slice(gradient.shape[1]), block.rows(rows)
                    here.further = partial(further, number, rows)
                    runs = self._directed(hooks, gradient, weights[:, whole], start[rows, whole], here, trained)
                    optimizer.advance()
                    for run, step_taken in zip(trained, self._clipped(runs), strict=True):
                        optimizer.step(weights[:, run], step_taken, lr, run)
                for result, kept in zip(results, put_back, strict=True):
                    result[active : rows.stop] = kept
        count = seen.cpu().numpy()
        loss = np.divide(total.cpu().numpy(), count, out=np.full(len(block), np.nan), where=count > 0)
        seconds = (time.perf_counter() - began) * steps / max(steps.sum(), 1)
        return Work(self._weights[: len(block)], loss, steps, seconds, block.vectors if is_whole else {})

    @staticmethod
    def _directed(
        hooks: Hooks, gradient: Tensor, weights: Tensor, start: Tensor, block: Block, trained: Sequence[slice]
    ) -> list[Tensor]:
        """The steps [K, n] of the runs of columns that are trained; the other arguments are whole, [K, d]."""
        if needs_whole(hooks):
            whole = hooks.direction(gradient, weights, start, block)
            return [whole[:, run] for run in trained]
        if not hooks.changes_direction:
            return [gradient[:, run] for run in trained]
        return [
            hooks.direction(gradient[:, run], weights[:, run], start[:, run], block.columns(run, gradient.shape[1]))
            for run in trained
        ]

    @cached_property
    def _elsewhere(self) -> Tensor:
        return self._new_gradients(self.at_once)

    def _new_gradients(self, count: int) -> Tensor:
        return aligned_rows(count, self.model.layout.parameters, self.model.device)

    def _in_one_piece(self, gradients: list[Tensor], whole: Tensor) -> Tensor:
        """`whole` [K, d], with the gradients of the tensors that are trained, and 0 for others."""
        if self._others:
            whole.zero_()
        torch._foreach_copy_([entry.view(whole) for entry in self._parameters], gradients)
        return whole

    def _inputs(
        self, step: Step, block: Block, weights: Tensor, statistics: list[Tensor], keys: Tensor, start: Tensor
    ) -> Inputs:
        """What the forward and backward pass of every client reads.

        Args:
            weights: [K, d] or more, the parameters.
            statistics: the running statistics, [K, ...] each.
        """
        batch, device = step.batch, self.model.device
        return Inputs(
            trained=[entry.view(weights).detach() for entry in self._parameters],
            kept=[entry.view(weights) for entry in self._others],
            statistics=statistics,
            x=batch.x,
            y=batch.y,
            sample=batch.index,
            place=step.place,
            weight=batch.weight,
            counts=torch.from_numpy(step.counts).to(device),
            keys=(keys + step.number) & 0x7FFFFFFF,
            start=start,
            vectors=block.vectors,
            unsent={name: tensor.expand(len(block), *tensor.shape) for name, tensor in self._unsent.items()},
        )

    def _both_passes(self, hooks: Hooks, block: Block, phase: Phase) -> Callable[[Inputs], Pass]:
        """`_compute` for a block, compiled or not."""
        compute = partial(self._compute, hooks)
        if self._compiler is None:
            return compute
        shapes = tuple((name, vector.shape) for name, vector in block.vectors.items())
        columns = tuple((part.start, part.stop) for part in phase.columns or ())
        made_of = fingerprint(hooks), columns, phase.settings(self.settings).batch_size, shapes
        return partial(self._compiler.call, compute, key=made_of)

    @torch.enable_grad()
    def _compute(self, hooks: Hooks, inputs: Inputs) -> Pass:
        """The forward and backward pass as a function of tensors alone."""
        leaves = [tensor.detach().requires_grad_() for tensor in inputs.trained]
        columns = torch.arange(inputs.y.shape[1], device=inputs.y.device)
        real = (columns < inputs.counts[:, None]).to(inputs.start.dtype)

        def one(
            parameters: list[Tensor],
            others: list[Tensor],
            statistics: list[Tensor],
            x: Tensor,
            y: Tensor,
            index: Tensor,
            place: Tensor,
            real: Tensor,
            key: Tensor,
            start: Tensor,
            rows: dict[str, Tensor],
            unsent: dict[str, Tensor],
        ) -> tuple[Tensor, list[Tensor]]:
            buffers = {entry.name: t for entry, t in zip(self._statistics, statistics, strict=True)}
            trained = {entry.name: t for entry, t in zip(self._parameters, parameters, strict=True)}
            kept = {entry.name: t for entry, t in zip(self._others, others, strict=True)}
            tensors = trained | kept | buffers
            net, part = Net(self.model, tensors, unsent=unsent), Batch(x, y, index, place)
            part.real = real
            with ClientWise(key, real, buffers) as mode:
                losses = hooks.loss(net, part, start, rows)
            check_losses(losses, y)
            return losses, [mode.changed.get(name, before) for name, before in buffers.items()]

        losses, changed = torch.vmap(one)(
            leaves,
            inputs.kept,
            inputs.statistics,
            inputs.x,
            inputs.y,
            inputs.sample,
            inputs.place,
            real,
            inputs.keys,
            inputs.start,
            inputs.vectors,
            inputs.unsent,
        )
        if inputs.weight is None:
            share, mass = real / real.sum(1, keepdim=True), inputs.counts
        else:
            weight = real * inputs.weight
            mass = weight.sum(1)
            share = weight / mass.clamp(min=1)[:, None]
        gradients = torch.autograd.grad(losses, leaves, share, allow_unused=True, materialize_grads=True)
        loss = (losses.detach() * share).sum(1)
        return Pass(list(gradients), loss, mass, [tensor.detach() for tensor in changed])

    def _select(self, phase: Phase) -> tuple[slice, ...]:
        """Select the columns that a phase trains."""
        trained = self._prepare(phase)
        parameters = [entry for entry in self.model.layout.entries if entry.is_parameter]
        self._parameters = [entry for entry in parameters if entry.lies_in(trained)]
        self._others = [entry for entry in parameters if not entry.lies_in(trained)]
        return trained

    def _steps(self, clients: NDArray[np.int64], round: int, phase: Phase) -> Callable[[int, int], Step]:
        """Makes a function of the step's number and the number of rows: the step of the first clients of a block."""
        settings, merges = phase.settings(self.settings), self.model.normalises_batches
        # A client without samples may be in the block to fill it up; it then uses another client's samples.
        sizes, size = np.maximum(self._sizes[clients], 1), settings.batch_size
        cuts = settings.count_cuts(sizes, merges)
        # Every step of every block has this width, to keep bits the same.
        columns = np.arange(min(size + int(merges), int(self._sizes.max())))
        shuffled = np.full(len(clients), -1)  # the epoch whose order a client's row holds
        order = np.empty((len(clients), int(sizes.max())), dtype=np.int64)
        bits = None if self.settings.augmentation == "none" else np.empty((*order.shape, 3), dtype=np.uint64)

        @lru_cache(BATCHES_KEPT)
        def step_of(number: int, rows: int) -> Step:
            epochs, place = np.divmod(number, cuts[:rows])
            behind = np.flatnonzero(epochs != shuffled[:rows])
            for epoch in np.unique(epochs[behind]).tolist():
                which = behind[epochs[behind] == epoch]
                longest = int(sizes[which].max())
                keys = self._hashed(f"{phase.name}order {epoch}", round, clients[which], longest)
                keys[np.arange(longest) >= sizes[which, None]] = np.iinfo(np.uint64).max
                order[which, :longest] = keys.argsort(axis=1, kind="stable")
                if bits is not None:
                    drawn = self._hashed(f"{phase.name}augmentation {epoch}", round, clients[which], 3 * longest)
                    bits[which, :longest] = drawn.reshape(-1, longest, 3)
            shuffled[:rows] = epochs
            first = place * size
            counts = np.where(place == cuts[:rows] - 1, sizes[:rows] - first, size)
            positions = np.minimum(first[:, None] + columns, sizes[:rows, None] - 1)
            chosen = np.take_along_axis(order[:rows], positions, axis=1)
            draws = None if bits is None else bits[np.arange(rows)[:, None], chosen]
            index = self._shards_in_a_row[self._starts[clients[:rows], None] + chosen]
            batch = self._batch(clients[:rows], index, draws)
            return Step(number, batch, torch.from_numpy(chosen).to(self.model.device), counts)

        return step_of

    def _batch(self, clients: NDArray[np.int64], index: NDArray[np.int64], bits: NDArray[np.uint64] | None) -> Batch:
        """x and y [K, B, ...], index and weight [K, B]."""
        shape = index.shape
        pixels = None
        if self._pixels(int(clients[0])) is not None:  # all clients have an order of their own, or none
            orders = [order for client in clients.tolist() if (order := self._pixels(client)) is not None]
            pixels = torch.stack(orders).repeat_interleave(shape[1], dim=0)
        drawn = None if bits is None else bits.reshape(-1, 3)
        flat = self.samples.batch(index.reshape(-1), pixels, self.settings.augmentation, drawn)
        weight = None if flat.weight is None else flat.weight.view(shape)
        return Batch(flat.x.unflatten(0, shape), flat.y.unflatten(0, shape), flat.index.view(shape), weight=weight)
