"""Whether clients can be trained side by side: two of them are trained both ways, and the results compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedmpi.training.block import Block, Hooks
from fedmpi.training.flat import Net
from fedmpi.training.losses import cross_entropy
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Batch
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import Task

# Samples in a full batch, and how many two clients hold: two batches, the second of which is padded, and part of one.
BATCH, SIZES = 4, (7, 3)
# How far the first step moves the parameter that it moves the most, and how far apart the results may be. Rounding
# makes them differ by less than a tenth of that; rows that pad a batch and count, by more than a hundred times that.
LONGEST_STEP, TOLERANCE = 0.05, 1e-5
# What PyTorch says where it cannot train clients side by side, and what that means. (It also asks to report it.)
_MEANINGS = {
    r"called random operation": "it draws random numbers in a way that cannot be told apart by client",
    r"\.item\(\)|data-dependent|boolean value": "its forward pass depends on the values of tensors",
    r"in-?place": "it changes a tensor in place",
    r"Batching rule not implemented for ([\w:]+)": r"PyTorch cannot run \1 for several clients at once",
    r"dynamic shape": "the shapes of its tensors depend on their values",
}


class _Plain:
    """The hooks of plain training."""

    direction_is_elementwise = True
    changes_loss = changes_direction = False

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(net(batch.x), batch.y)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient


def obstacle(task: Task, hooks: Hooks) -> str | None:
    """What is against training this network's clients side by side, as a clause; None: nothing.

    Two clients of different sizes take two steps one by one, and side by side. If the second way fails, or ends
    elsewhere than the first, the network (or the loss, or the direction) cannot be trained so: it looks across the
    rows of a batch, of which some only pad it, or at the values of tensors, or PyTorch has no rule for it. Takes some
    hundredths of a second, and leaves the model as it was.

    Args:
        hooks: the method's. A loss or direction that reads vectors given to `Federation.train`, or what `setup`
            makes, cannot be tried yet: then the network is tried by itself.
    """
    start = task.model.weights.clone()
    try:
        for tried in (hooks, _Plain()):
            # Of what cannot be trained one by one nothing can be said, as of a method that is not set up.
            with suppress(Exception):
                one_by_one = _both_clients(task, tried, start)
                break
        else:
            return None
        return _difference(task, tried, start, *one_by_one)
    finally:
        task.model.load(start[0])


def _both_clients(task: Task, hooks: Hooks, start: Tensor) -> tuple[float, list[tuple[Tensor, float]]]:
    """A learning rate, and the weights [P] and mean loss of each client when it has been trained by itself.

    Args:
        start: [1, P], the weights that both receive.
    """
    with _in_float32(task):
        trainer = PlainTrainer(_small(task, 1.0))
        largest = trainer.gradients(_block(0), start, hooks, round=0).abs().max().item()
        lr = LONGEST_STEP / largest
        trainer = PlainTrainer(_small(task, lr))
        done = []
        for client in range(len(SIZES)):
            work = trainer.train(_block(client), start, hooks, 0, 1)
            done.append((work.weights[0].clone(), float(work.loss[0])))
    return lr, done


def _difference(
    task: Task, hooks: Hooks, start: Tensor, lr: float, one_by_one: list[tuple[Tensor, float]]
) -> str | None:
    whose = "the network or the method" if hooks.changes_loss or hooks.changes_direction else "the network"
    if not all(weights.isfinite().all() for weights, _ in one_by_one):
        return None
    try:
        with _in_float32(task):
            trainer = SideBySideTrainer(_small(task, lr), len(SIZES))
            work = trainer.train(_block(*range(len(SIZES))), start.expand(len(SIZES), -1), hooks, 0, 1)
    except Exception as error:
        return f"{whose} cannot be run for several clients at once: {_meaning(error)}"
    entries = task.model.layout.entries
    for k, (weights, loss) in enumerate(one_by_one):
        for entry in entries:
            expected, found = entry.view(weights), entry.view(work.weights[k])
            apart = (found - expected).abs().max().item() if entry.size else 0.0
            if not apart <= TOLERANCE * max(1.0, expected.abs().max().item() if entry.size else 0.0):
                return (
                    f"{whose} gives other results side by side than one by one ({entry.name} differs by {apart:.1g})"
                )
        if not abs(work.loss[k] - loss) <= TOLERANCE * max(1.0, abs(loss)):
            return f"{whose} gives another loss side by side than one by one ({work.loss[k]:.6g}, not {loss:.6g})"
    return None


def _small(task: Task, lr: float) -> Task:
    """Two clients with some of the first samples, who take plain steps."""
    ends = np.cumsum(SIZES)
    places = [np.arange(end - size, end) % len(task.samples.y) for end, size in zip(ends, SIZES, strict=True)]
    return replace(task, shards=places, settings=LocalTraining(epochs=1, batch_size=BATCH, lr=lr))


def _block(*clients: int) -> Block:
    sizes = np.array(SIZES)[list(clients)]
    return Block(np.array(clients), sizes, sizes)


def _in_float32(task: Task) -> AbstractContextManager[object]:
    """Without the short products by which GPUs convolve: their rounding would look like an error."""
    if task.model.device.type != "cuda":
        return nullcontext()
    library = torch.backends.cudnn
    as_it_is = {name: getattr(library, name) for name in ("enabled", "benchmark", "deterministic")}
    without: AbstractContextManager[object] = library.flags(**as_it_is, allow_tf32=False)
    return without


def _meaning(error: Exception) -> str:
    text = " ".join(str(error).split())
    for pattern, meaning in _MEANINGS.items():
        if found := re.search(pattern, text):
            return found.expand(meaning)
    first = re.split(r"(?<=[a-z])[.;:] ", text)[0]
    return f"{type(error).__name__}: {first[:120]}"
