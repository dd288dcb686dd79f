"""Trains several clients at once: one call of the network computes a step of all, by `torch.vmap` over their weights.

With a small network, the overhead between operations dominates; with K clients in one operation it occurs once.
Clients with different numbers of samples share a step by padding: only the real rows of a batch count. Clients are
sorted by their number of steps, so that finished clients are at the end and are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from fedmpi.training.optimizers import Rate
from fedmpi.training.samples import Batch, augmentation_draws, divisor, upload
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import LocalWork, Trainer, check_losses, direction_of, read

# Further gradients may be on later batches, usually so many later at the most. How many stretches are in memory then.
USUALLY_AHEAD, STRETCHES_KEPT = 2, 3
# Numbers that are drawn for a stretch at the most (32 MB).
LONGEST_STRETCH = 1 << 22


@dataclass
class Step:
    """The batches of one step, or a part of them.

    Attributes:
        number: of the step, or of the part among those of all steps.
        batch: [K, B, ...]; its `place` and `real` are set. The real samples come first in each row.
        share: [K, B] the share of each sample in the client's mean loss of the step; 0 for padding.
        mass: [K] the sum of the weights of the client's samples in the step.
        keys: [K] of random functions in this training.
    """

    number: int
    batch: Batch
    share: Tensor
    mass: Tensor
    keys: Tensor

    def parts(self, settings: LocalTraining) -> Iterator[Step]:
        """The parts for which memory is needed at the same time. They are equally wide, with padding at the end."""
        if settings.accumulate == 1:
            yield self
            return
        batch, width = self.batch, self.share.shape[1]
        assert batch.place is not None
        size = min(settings.batch_size, width)
        for number in range(width // size):
            some = slice(number * size, (number + 1) * size)
            part = Batch(batch.x[:, some], batch.y[:, some], batch.index[:, some], batch.place[:, some])
            part.real = batch.real[:, some]
            yield Step(self.number * settings.accumulate + number, part, self.share[:, some], self.mass, self.keys)


@dataclass
class Stretch:
    """What the batches of n steps consist of, on the device: [n, K, B] each, and [n, K, B, 3]."""

    index: Tensor
    place: Tensor
    real: Tensor
    draws: Tensor | None
    keys: Tensor  # [K]


class Inputs(NamedTuple):
    """What the forward and backward pass of a step reads; every tensor has a row per client.

    Attributes:
        trained: the parameters that are trained.
        kept: the other parameters.
        statistics: the running statistics.
        x, y, sample, place: the batches [K, B, ...].
        share: [K, B] the share of each sample in the loss that is minimised.
        real: [K, B] 1 for samples, 0 for padding.
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
    share: Tensor
    real: Tensor
    keys: Tensor
    start: Tensor
    vectors: dict[str, Tensor]
    unsent: dict[str, Tensor]


class Pass(NamedTuple):
    """The result of the forward and backward pass of a step.

    Attributes:
        gradients: of the parameters that are trained.
        loss: [K] the part of the mean over the real rows of the step.
        statistics: new values of running statistics.
    """

    gradients: list[Tensor]
    loss: Tensor
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
        self._sizes = self._shards.sizes
        self._most = int(self._sizes.max())

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int, phase: Phase = WHOLE) -> Work:
        steps = self.count_steps(block.clients, block.completed, phase)
        if (np.diff(steps) > 0).any():
            longest_first = np.argsort(-steps, kind="stable")
            work = self.train(block.rows(longest_first.tolist()), start[longest_first], hooks, round, rounds, phase)
            return work.of(np.argsort(longest_first))
        if len(block) < self._fewest:
            filled = [*range(len(block)), *[len(block) - 1] * (self._fewest - len(block))]
            is_shared = start.stride(0) == 0  # rows of one vector, which are not copied
            received = start[:1].expand(len(filled), -1) if is_shared else start[filled]
            work = self.train(block.rows(filled), received, hooks, round, rounds, phase)
            kept = work.of(slice(len(block)))
            kept.seconds *= work.steps.sum() / max(kept.steps.sum(), 1)
            return kept
        began = time.perf_counter()
        settings, is_whole, trained = phase.settings(self.settings), needs_whole(hooks), self._select(phase)
        rate_of, optimizer = self._rates(block.clients, steps, round, rounds, phase), self._fresh_optimizer(settings)
        # w -= lr g needs no gradient in one piece.
        is_plain = not hooks.changes_direction and settings.is_plain_sgd
        if is_whole:
            block = block.with_own_rows()
        total = torch.zeros(len(block), device=self.model.device)
        seen = torch.zeros(len(block), dtype=torch.float64, device=self.model.device)
        self._weights[: len(block)].copy_(start)
        self.model.reset_counters()
        step_of = self._steps(block.clients, steps, round, phase, USUALLY_AHEAD if is_whole else 0)
        both_passes = self._both_passes(hooks, block, phase)

        def compute(step: Step, rows: slice, weights: Tensor, statistics: list[Tensor]) -> Pass:
            here = block.rows(rows)

            def passes() -> Iterator[Pass]:
                for part in step.parts(settings):
                    yield both_passes(self._inputs(part, here, weights, statistics, start[rows]))

            return next(passes()) if settings.accumulate == 1 else self._added(passes())

        @torch.enable_grad()
        def further(number: int, rows: slice, weights: Tensor, ahead: int) -> Tensor:
            there = self._elsewhere[rows].copy_(weights)
            # Copies, because a forward pass may change them in place.
            statistics = [entry.view(self._weights[rows]).clone() for entry in self._statistics]
            with self.model.counters_kept():
                done = compute(step_of(number, rows.stop, ahead), rows, there, statistics)
            return self._in_one_piece(done.gradients, self._new_gradients(rows.stop))

        # These must not change for clients that are finished, and only fill up the block.
        results = [self._weights, *(block.vectors.values() if is_whole else ())]
        for number in range(int(steps.max(initial=0))):
            active = int((steps > number).sum())
            rows = slice(max(active, self._fewest))
            put_back = [result[active : rows.stop].clone() for result in results if active < rows.stop]
            weights = self._weights[rows]
            statistics = [entry.view(weights) for entry in self._statistics]
            step, lr = step_of(number, rows.stop, 0), rate_of(number, rows)
            done = compute(step, rows, weights, statistics)
            with torch.no_grad():
                total[:active] += (done.loss * step.mass)[:active]
                seen[:active] += step.mass[:active]
                for old, new in zip(statistics, done.statistics, strict=True):
                    old.copy_(new)
                if is_plain and not isinstance(lr, Tensor):
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
                for result, kept in zip(results, put_back, strict=False):
                    result[active : rows.stop] = kept
        weights = self._weights[: len(block)]
        is_finite, (losses, count) = read(weights, total, seen)
        loss = np.divide(losses, count, out=np.full(len(block), np.nan), where=count > 0)
        seconds = (time.perf_counter() - began) * steps / max(steps.sum(), 1)
        return Work(weights, loss, steps, seconds, is_finite, block.vectors if is_whole else {})

    @staticmethod
    def _directed(
        hooks: Hooks, gradient: Tensor, weights: Tensor, start: Tensor, block: Block, trained: Sequence[slice]
    ) -> list[Tensor]:
        """The steps [K, n] of the runs of columns that are trained; the other arguments are whole, [K, d]."""
        if needs_whole(hooks):
            whole = direction_of(hooks, gradient, weights, start, block)
            return [whole[:, run] for run in trained]
        if not hooks.changes_direction:
            return [gradient[:, run] for run in trained]
        return [
            direction_of(
                hooks, gradient[:, run], weights[:, run], start[:, run], block.columns(run, gradient.shape[1])
            )
            for run in trained
        ]

    def _rates(
        self, clients: NDArray[np.int64], taken: NDArray[np.int64], round: int, rounds: int, phase: Phase
    ) -> Callable[[int, slice], Rate]:
        """Makes a function (number of a step, some of the clients) -> their learning rate, or their rates [.., 1].

        Args:
            taken: [K] the number of steps that each client takes.
        """
        settings = phase.settings(self.settings)
        if not settings.varies_within_rounds:
            same = settings.rate(round, rounds)
            return lambda number, rows: same
        # A share of the steps follows the schedule of all of them; Centralized takes more than a client has.
        steps = np.maximum(self.count_steps(clients, None, phase), taken)
        rates = np.zeros((int(steps.max(initial=0)), len(clients)))
        for count in np.unique(steps).tolist():
            rates[:count, steps == count] = settings.rates(round, rounds, count)[:, None]
        there = torch.from_numpy(rates).to(self.model.device, self._weights.dtype)[..., None]
        return lambda number, rows: there[number, rows]

    @staticmethod
    def _added(passes: Iterator[Pass]) -> Pass:
        """The sum of several passes."""
        first = next(passes)
        # Copies, because two gradients may be one tensor, and because compiled code uses the memory again.
        gradients, loss = [tensor.clone() for tensor in first.gradients], first.loss.clone()
        for other in passes:
            torch._foreach_add_(gradients, other.gradients)
            loss += other.loss
        return first._replace(gradients=gradients, loss=loss)

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

    def _inputs(self, step: Step, block: Block, weights: Tensor, statistics: list[Tensor], start: Tensor) -> Inputs:
        """What the forward and backward pass of every client reads.

        Args:
            weights: [K, d] or more, the parameters.
            statistics: the running statistics, [K, ...] each.
        """
        batch = step.batch
        assert batch.place is not None
        return Inputs(
            trained=[entry.view(weights).detach() for entry in self._parameters],
            kept=[entry.view(weights) for entry in self._others],
            statistics=statistics,
            x=batch.x,
            y=batch.y,
            sample=batch.index,
            place=batch.place,
            share=step.share,
            real=batch.real,
            keys=(step.keys + step.number) & 0x7FFFFFFF,
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
        leaves, real = [tensor.detach().requires_grad_() for tensor in inputs.trained], inputs.real

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
        gradients = torch.autograd.grad(losses, leaves, inputs.share, allow_unused=True, materialize_grads=True)
        loss = (losses.detach() * inputs.share).sum(1)
        return Pass(list(gradients), loss, [tensor.detach() for tensor in changed])

    def _select(self, phase: Phase) -> tuple[slice, ...]:
        """Select the columns that a phase trains."""
        trained = self._prepare(phase)
        parameters = [entry for entry in self.model.layout.entries if entry.is_parameter]
        self._parameters = [entry for entry in parameters if entry.lies_in(trained)]
        self._others = [entry for entry in parameters if not entry.lies_in(trained)]
        return trained

    def _steps(
        self, clients: NDArray[np.int64], steps: NDArray[np.int64], round: int, phase: Phase, further: int
    ) -> Callable[[int, int, int], Step]:
        """Makes a function (number of a step, number of rows, how many steps ahead) -> step of the first clients.

        What the batches consist of is drawn, and copied to the device, for an epoch of the longest client at once, or
        for all steps if there are fewer.

        Args:
            steps: [K] the number of steps that each client takes.
            further: on how many later batches there usually are gradients.
        """
        settings, merges = phase.settings(self.settings), self.model.normalises_batches
        cuts = settings.count_cuts(self._sizes[clients], merges)
        at_once = LONGEST_STRETCH // (len(clients) * self._width(settings))
        length = max(min(int(cuts.max()), int(steps.max()), at_once), 1)
        stretches: dict[int, Stretch] = {}

        def step_of(now: int, rows: int, ahead: int) -> Step:
            number = now + ahead
            which, place = divmod(number, length)
            if ahead > further:
                drawn, place = self._stretch(clients[:rows], range(number, number + 1), None, round, phase), 0
            elif which in stretches:
                drawn = stretches[which]
            else:
                if len(stretches) == STRETCHES_KEPT:
                    del stretches[min(stretches)]
                some = range(which * length, (which + 1) * length)
                # Later steps have no more rows than this one.
                drawn = self._stretch(clients[:rows], some, steps[:rows] + further, round, phase)
                stretches[which] = drawn
            draws = None if drawn.draws is None else drawn.draws[place, :rows]
            batch = self._batch(clients[:rows], drawn.index[place, :rows], draws)
            batch.place, batch.real = drawn.place[place, :rows], drawn.real[place, :rows]
            weight = batch.real if batch.weight is None else batch.real * batch.weight
            mass = weight.sum(1)
            # The weights of a batch may all be 0; its number of samples is at least 1.
            share = weight / (mass if batch.weight is None else divisor(mass))[:, None]
            return Step(number, batch, share, mass, drawn.keys[:rows])

        return step_of

    def _stretch(
        self, clients: NDArray[np.int64], steps: range, until: NDArray[np.int64] | None, round: int, phase: Phase
    ) -> Stretch:
        """What the batches of these clients in these steps consist of.

        Args:
            until: [K] the number of steps for which a client's batches matter. Later it only fills up the block, with
                any of its samples. None: all matter.
        """
        # A client without samples may be in the block to fill it up; it then uses another client's samples.
        settings, sizes = phase.settings(self.settings), np.maximum(self._sizes[clients], 1)
        cuts = settings.count_cuts(sizes, self.model.normalises_batches)
        numbers = np.array(steps)[:, None]
        epochs, cut = np.divmod(numbers, cuts)
        first, columns = cut * settings.step_size, np.arange(self._width(settings))
        counts = np.where(cut == cuts - 1, sizes - first, settings.step_size)
        positions = np.minimum(first[..., None] + columns, sizes[:, None] - 1)
        if until is not None:
            epochs[numbers >= until] = -1
        chosen = positions.copy()
        augments = self.settings.augmentation != "none"
        bits = np.zeros((*chosen.shape, 3), dtype=np.uint64) if augments else None
        for epoch in np.unique(epochs[epochs >= 0]).tolist():
            step, row = np.nonzero(epochs == epoch)
            which, place = np.unique(row, return_inverse=True)
            longest = int(sizes[which].max())
            keys = self._hashed(f"{phase.name}order {epoch}", round, clients[which], longest)
            keys[np.arange(longest) >= sizes[which, None]] = np.iinfo(np.uint64).max
            order = keys.argsort(axis=1, kind="stable")
            chosen[step, row] = order[place[:, None], positions[step, row]]
            if bits is not None:
                drawn = self._hashed(f"{phase.name}augmentation {epoch}", round, clients[which], 3 * longest)
                bits[step, row] = drawn.reshape(-1, longest, 3)[place[:, None], chosen[step, row]]
        distinct, which = np.unique(clients, return_inverse=True)
        theirs, ends = self._shards.of(distinct), np.cumsum(self._sizes[distinct])
        begins = np.minimum(ends - self._sizes[distinct], len(theirs) - 1)  # of a client without samples, too
        index = theirs[begins[which, None] + chosen]
        arrays = [index, chosen, counts, self._dropout_keys(phase, round, clients).astype(np.int64)]
        arrays += [] if bits is None else [augmentation_draws(bits)]
        there = upload(self.model.device, *arrays)
        real = torch.arange(len(columns), device=self.model.device) < there[2][..., None]
        return Stretch(
            index=there[0],
            place=there[1],
            real=real.to(self._weights.dtype),
            draws=None if bits is None else there[4],
            keys=there[3].to(torch.int32),
        )

    def _width(self, settings: LocalTraining) -> int:
        """The size of every step of every block, to keep bits the same. Parts of a step are equally wide, too."""
        if settings.accumulate == 1:
            return min(settings.batch_size + int(self.model.normalises_batches), self._most)
        part = min(settings.batch_size, self._most)
        return -(-min(settings.step_size, self._most) // part) * part

    def _batch(self, clients: NDArray[np.int64], index: Tensor, draws: Tensor | None) -> Batch:
        """x and y [K, B, ...], index and weight [K, B]."""
        shape = index.shape
        pixels = None
        if self._pixels(int(clients[0])) is not None:  # all clients have an order of their own, or none
            orders = [order for client in clients.tolist() if (order := self._pixels(client)) is not None]
            pixels = torch.stack(orders).repeat_interleave(shape[1], dim=0)
        drawn = None if draws is None else draws.reshape(-1, 3)
        flat = self.samples.batch(index.reshape(-1), pixels, self.settings.augmentation, drawn)
        weight = None if flat.weight is None else flat.weight.view(shape)
        return Batch(flat.x.unflatten(0, shape), flat.y.unflatten(0, shape), index, weight=weight)
