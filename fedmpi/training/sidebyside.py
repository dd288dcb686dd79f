"""Many clients at once: one call of the network computes a step of all, by `torch.vmap` over their stacked weights.

Small networks leave a processor idle between operations; with K clients in one operation that cost is paid once.
Clients of different sizes share a step by padding: of a batch's rows only the real ones count. Clients are sorted by
their number of steps, so that those which are done fall off the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.training.block import Block, Hooks, Work
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.layout import aligned_rows
from fedmpi.training.samples import Batch, Samples
from fedmpi.training.settings import LocalTraining
from fedmpi.training.trainer import PixelOrder, Trainer, check_losses, corrects


@dataclass
class Step:
    """The batches of one step: of the first K clients, B rows each, of which `counts` [K] are real."""

    number: int
    where: NDArray[np.int64]
    counts: NDArray[np.int64]
    bits: NDArray[np.uint64] | None


class SideBySideTrainer(Trainer):
    """Trains up to `at_once` clients side by side.

    On a CPU a client's bits do not depend on who is trained beside it, as long as there is somebody: matrix products
    of one and of several matrices are different code. A client that is left alone is therefore given company.
    """

    def __init__(
        self,
        model: FlatModel,
        samples: Samples,
        shards: list[NDArray[np.int64]],
        pixels: PixelOrder,
        settings: LocalTraining,
        seed: int,
        at_once: int,
    ) -> None:
        super().__init__(model, samples, shards, pixels, settings, seed, at_once)
        layout, rows = model.layout, max(at_once, 2)
        model.module.train()
        self._weights = aligned_rows(rows, layout.size, model.device)
        self._gradient = aligned_rows(rows, layout.parameters, model.device)
        self._optimizer = self._make_optimizer(rows)
        self._parameters = [entry for entry in layout.entries if entry.segment != "statistics"]
        self._buffers = [entry for entry in layout.entries if entry.segment == "statistics"]
        self._sizes = np.array([len(shard) for shard in shards])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._samples_of_all = np.concatenate(shards)
        # The same for every block, for the bits' sake.
        self._width = min(settings.batch_size + int(model.normalises_batches), int(self._sizes.max()))

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int) -> Work:
        if len(block) == 1:
            work = self.train(block.rows([0, 0]), start[[0, 0]], hooks, round, rounds)
            return Work(work.weights[:1], work.loss[:1], work.steps[:1], 2 * work.seconds[:1])
        began = time.perf_counter()
        count, trained = len(block), self.model.layout.parameters
        lr = self.settings.rate(round, rounds)
        has_direction = corrects(hooks)
        keys = torch.from_numpy(self._dropout_keys(round, block.clients)).to(self.model.device)
        total = torch.zeros(count, device=self.model.device)
        self._weights[:count].copy_(start)
        self._optimizer.reset()
        leaves: list[Tensor] = []
        done = self._weights.new_empty(0)
        alone = False
        for step in self._steps(block.clients, round):
            active = len(step.counts)
            if len(leaves) == 0 or len(leaves[0]) != active:
                leaves = [entry.view(self._weights[:active]).detach().requires_grad_() for entry in self._parameters]
            share = self._shares(step.counts)
            losses = self._losses(block, step, leaves, keys, start, hooks)
            gradients = torch.autograd.grad(losses, leaves, grad_outputs=share)
            with torch.no_grad():
                for entry, gradient in zip(self._parameters, gradients, strict=True):
                    entry.view(self._gradient[:active]).copy_(gradient)
                direction, weights = self._gradient[:active], self._weights[:active, :trained]
                if has_direction:
                    direction = hooks.direction(direction, weights, start[:active, :trained], block.rows(slice(active)))
                self._optimizer.step(weights, self._clipped(direction), lr)
                total[:active] += (losses * share).sum(1) * torch.from_numpy(step.counts).to(total.device)
        raise NotImplementedError
