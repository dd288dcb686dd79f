"""Trains several clients at once: one call of the network computes a step of all, by `torch.vmap` over their weights.

With a small network, the overhead between operations dominates; with K clients in one operation it occurs once.
Clients with different numbers of samples share a step by padding: only the real rows of a batch count. Clients are
sorted by their number of steps, so that finished clients are at the end and are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from fedmpi.training.block import WHOLE, Block, Hooks, Phase, Work
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.flat import Net
from fedmpi.training.layout import Entry, aligned_rows
from fedmpi.training.samples import Batch
from fedmpi.training.trainer import LocalWork, Trainer, check_losses


@dataclass
class Step:
    """The batches of one step: [K, B] samples and their positions. The first `counts` [K] in each row are real."""

    number: int
    index: NDArray[np.int64]
    place: NDArray[np.int64]
    counts: NDArray[np.int64]
    bits: NDArray[np.uint64] | None


class SideBySideTrainer(Trainer):
    """Trains up to `at_once` clients (at least two) in one batched call.

    A client's result must not depend, in any bit, on the clients that are trained with it. On a CPU, matrix products
    fulfil this if there are at least two clients, because one product and several products use different code. The
    bits of convolutions depend on the number of groups, which is the number of clients. Products in bfloat16 use
    other code above a certain total size. So there is a minimum number of rows, 2 or `at_once`: a smaller block is
    filled up with copies of its last client, and some finished clients continue to train, with their results restored
    afterwards. `ClientWise` handles what depends on the row of a client.
    """

    def __init__(self, work: LocalWork, at_once: int) -> None:
        super().__init__(work, at_once)
        model = work.model
        convolves = any(isinstance(layer, _ConvNd) for layer in model.module.modules())
        self._fewest = at_once if convolves or model.in_bf16 else 2
        layout = model.layout
        self._weights = aligned_rows(at_once, layout.size, model.device)
        self._gradient = aligned_rows(at_once, layout.parameters, model.device)
        self._parameters = [entry for entry in layout.entries if entry.is_parameter]  # those that a phase trains
        self._others: list[Entry] = []
        self._statistics = [entry for entry in layout.entries if not entry.is_parameter]
        # A shared vector is repeated as one row per client if bits of products depend on the number of rows.
        self._unsent = model.unsent if model.device.type == "cpu" else {}

    def deal(self, shards: Sequence[NDArray[np.int64]]) -> None:
        super().deal(shards)
        shards, settings, merges = self._shards, self.settings, self.model.normalises_batches
        self._sizes = np.array([len(shard) for shard in shards])
        self._cuts = np.array([settings.count_cuts(size, merges) for size in self._sizes.tolist()])
        self._starts = np.minimum(np.cumsum(self._sizes) - self._sizes, self._sizes.sum() - 1)
        self._shards_in_a_row = np.concatenate(shards)
        # The size of every step of every block, to keep bits the same.
        self._width = min(settings.batch_size + int(merges), int(self._sizes.max()))

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int, phase: Phase = WHOLE) -> Work:
        steps = self.count_steps(block.clients, block.completed, phase)
        if (np.diff(steps) > 0).any():
            longest_first = np.argsort(-steps, kind="stable")
            work = self.train(block.rows(longest_first.tolist()), start[longest_first], hooks, round, rounds, phase)
            back = np.argsort(longest_first)
            return Work(work.weights[back], work.loss[back], work.steps[back], work.seconds[back])
        if len(block) < self._fewest:
            filled = [*range(len(block)), *[len(block) - 1] * (self._fewest - len(block))]
            work = self.train(block.rows(filled), start[filled], hooks, round, rounds, phase)
            kept = slice(len(block))
            share = work.steps.sum() / max(work.steps[kept].sum(), 1)
            return Work(work.weights[kept], work.loss[kept], work.steps[kept], share * work.seconds[kept])
        began = time.perf_counter()
        lr, has_direction = self.settings.rate(round, rounds), hooks.changes_direction
        trained = self._select(phase)
        # w -= lr g needs no gradient in one piece.
        is_plain = not has_direction and self.settings.is_plain_sgd
        keys = torch.from_numpy(self._dropout_keys(phase, round, block.clients)).to(self.model.device)
        total = torch.zeros(len(block), device=self.model.device)
        seen = torch.zeros(len(block), dtype=torch.float64, device=self.model.device)
        self._weights[: len(block)].copy_(start)
        self.model.reset_counters()
        self._optimizer.reset()
        for step in self._steps(block.clients, steps, round, phase):
            rows = slice(len(step.counts))
            active = int((steps > step.number).sum())
            put_back = self._weights[active : rows.stop].clone()
            leaves = [entry.view(self._weights[rows]).detach().requires_grad_() for entry in self._parameters]
            here = block.rows(rows)
            losses, share, mass, statistics = self._losses(here, step, leaves, keys[rows], start[rows], hooks)
            gradients = torch.autograd.grad(losses, leaves, share, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                if is_plain:
                    torch._foreach_add_(leaves, list(gradients), alpha=-lr)
                else:
                    whole = self._gradient[rows]
                    torch._foreach_copy_([entry.view(whole) for entry in self._parameters], list(gradients))
                    runs = [whole[:, run] for run in trained]
                    if has_direction:
                        runs = [
                            hooks.direction(
                                gradient,
                                self._weights[rows, run],
                                start[rows, run],
                                here.columns(run, self.model.layout.parameters),
                            )
                            for run, gradient in zip(trained, runs, strict=True)
                        ]
                    self._optimizer.advance()
                    for run, step_taken in zip(trained, self._clipped(runs), strict=True):
                        self._optimizer.step(self._weights[rows, run], step_taken, lr, run)
                for entry, new in zip(self._statistics, statistics, strict=True):
                    entry.view(self._weights[rows]).copy_(new)
                self._weights[active : rows.stop] = put_back
                total[:active] += ((losses * share).sum(1) * mass)[:active]
                seen[:active] += mass[:active]
        count = seen.cpu().numpy()
        loss = np.divide(total.cpu().numpy(), count, out=np.full(len(block), np.nan), where=count > 0)
        seconds = (time.perf_counter() - began) * steps / max(steps.sum(), 1)
        return Work(self._weights[: len(block)], loss, steps, seconds)

    def _losses(
        self, block: Block, step: Step, leaves: list[Tensor], keys: Tensor, start: Tensor, hooks: Hooks
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """One step of every client.

        Returns: [K, B] the loss of every row; [K, B] its share in the client's mean (0: padding); [K] the weight of
            the client's samples (usually their number); and new statistics.
        """
        device = self.model.device
        real = torch.from_numpy(np.arange(step.index.shape[1]) < step.counts[:, None]).to(device, start.dtype)
        batch, place = self._batch(block.clients, step), torch.from_numpy(step.place).to(device)
        others, statistics = (
            [entry.view(self._weights[: len(block)]) for entry in kind] for kind in (self._others, self._statistics)
        )
        unsent = {name: tensor.expand(len(block), *tensor.shape) for name, tensor in self._unsent.items()}

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
            with ClientWise((key + step.number) & 0x7FFFFFFF, real, buffers) as mode:
                losses = hooks.loss(net, part, start, rows)
            check_losses(losses, y)
            return losses, [mode.changed.get(name, before) for name, before in buffers.items()]

        losses, changed = torch.vmap(one)(
            leaves, others, statistics, batch.x, batch.y, batch.index, place, real, keys, start, block.vectors, unsent
        )
        if batch.weight is None:
            return losses, real / real.sum(1, keepdim=True), torch.from_numpy(step.counts).to(device), changed
        weight = real * batch.weight
        mass = weight.sum(1)
        return losses, weight / mass.clamp(min=1)[:, None], mass, changed

    def _select(self, phase: Phase) -> tuple[slice, ...]:
        """Select the columns that a phase trains."""
        trained = self._prepare(phase)
        parameters = [entry for entry in self.model.layout.entries if entry.is_parameter]
        self._parameters = [entry for entry in parameters if entry.lies_in(trained)]
        self._others = [entry for entry in parameters if not entry.lies_in(trained)]
        return trained

    def _steps(
        self, clients: NDArray[np.int64], steps: NDArray[np.int64], round: int, phase: Phase
    ) -> Iterator[Step]:
        """The steps of a block, each for the clients that are not finished and the copies that fill it up."""
        # A client without samples may be in the block to fill it up; it then uses another client's samples.
        sizes, cuts = np.maximum(self._sizes[clients], 1), np.maximum(self._cuts[clients], 1)
        size = self.settings.batch_size
        columns = np.arange(self._width)
        shuffled = np.full(len(clients), -1)  # the epoch whose order a client's row holds
        order = np.empty((len(clients), int(sizes.max())), dtype=np.int64)
        bits = None if self.settings.augmentation == "none" else np.empty((*order.shape, 3), dtype=np.uint64)
        for number in range(int(steps.max(initial=0))):
            rows = max(int((steps > number).sum()), self._fewest)
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
            yield Step(number, index, chosen, counts, draws)

    def _batch(self, clients: NDArray[np.int64], step: Step) -> Batch:
        """x and y [K, B, ...], index and weight [K, B]."""
        shape = step.index.shape
        pixels = None
        if self._pixels(int(clients[0])) is not None:  # all clients have an order of their own, or none
            orders = [order for client in clients.tolist() if (order := self._pixels(client)) is not None]
            pixels = torch.stack(orders).repeat_interleave(shape[1], dim=0)
        bits = None if step.bits is None else step.bits.reshape(-1, 3)
        flat = self.samples.batch(step.index.reshape(-1), pixels, self.settings.augmentation, bits)
        weight = None if flat.weight is None else flat.weight.view(shape)
        return Batch(flat.x.unflatten(0, shape), flat.y.unflatten(0, shape), flat.index.view(shape), weight=weight)
