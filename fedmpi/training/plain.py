"""One client after another, in one flat model: the fast way for networks that fill a core by themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedmpi.training.block import Block, Hooks, Work
from fedmpi.training.clientwise import ClientWise
from fedmpi.training.flat import Net
from fedmpi.training.samples import Batch
from fedmpi.training.trainer import Trainer, check_losses, corrects


class PlainTrainer(Trainer):
    """Trains clients one by one; the model's vector holds the result of the last."""

    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int) -> Work:
        began = time.perf_counter()
        client = int(block.clients[0])
        model = self.model
        optimizer = self._make_optimizer(1)
        trained = model.layout.parameters
        weights, gradient, origin = model.weights[:, :trained], model.gradient, start[:, :trained]
        lr = self.settings.rate(round, rounds)
        has_direction = corrects(hooks)
        rows = {name: value[0] for name, value in block.vectors.items()}
        net = Net(model)
        key = int(self._dropout_keys(round, block.clients)[0])
        total, seen, steps = torch.zeros((), device=model.device), 0, 0

        model.load(start[0])
        self._prepare(len(self.shards[client]))
        for batch in self._batches(client, round):
            with ClientWise((key + steps) & 0x7FFFFFFF) if self._drops_out else nullcontext():
                losses = hooks.loss(net, batch, start[0], rows)
            check_losses(losses, batch.y)
            loss = losses.mean()
            model.backward(loss)
            with torch.no_grad():
                step = hooks.direction(gradient, weights, origin, block) if has_direction else gradient
                optimizer.step(weights, self._clipped(step), lr)
                total.add_(loss, alpha=len(batch))
            seen += len(batch)
            steps += 1
        mean = total.item() / seen if seen else math.nan
        seconds = time.perf_counter() - began
        return Work(model.weights, np.array([mean]), np.array([steps]), np.array([seconds]))

    def _prepare(self, samples: int) -> None:
        """Training mode; but one sample has no variance, so a client without others keeps received statistics."""
        self.model.module.train()
        if samples == 1 and self.model.normalises_batches:
            for layer in self.model.module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def _batches(self, client: int, round: int) -> Iterator[Batch]:
        shard, clients = self.shards[client], np.array([client])
        pixels, augmentation = self.pixels(client), self.settings.augmentation
        cuts = self.settings.batches(len(shard), self.model.normalises_batches)
        draws = None
        for step in range(self.count_steps(len(shard))):
            epoch, place = divmod(step, len(cuts))
            if place == 0:
                order = self._hashed(f"order {epoch}", round, clients, len(shard))[0].argsort(kind="stable")
                if augmentation != "none":
                    bits = self._hashed(f"augmentation {epoch}", round, clients, 3 * len(shard))
                    draws = bits.reshape(-1, 3)
            chosen = order[cuts[place]]
            yield self.samples.batch(shard[chosen], pixels, augmentation, None if draws is None else draws[chosen])
