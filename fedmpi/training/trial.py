"""Tests whether several clients can be trained in one batched call, by training two of them in both ways."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fedmpi.tasks import Task
from fedmpi.training.block import Block, Hooks
from fedmpi.training.flat import FlatModel, Net
from fedmpi.training.plain import PlainTrainer
from fedmpi.training.samples import Batch
from fedmpi.training.settings import LocalTraining
from fedmpi.training.sidebyside import SideBySideTrainer
from fedmpi.training.trainer import LocalWork

# Samples per batch, and samples of the two clients: two batches, of which the second is padded, and a part of one.
BATCH, SIZES = 4, (7, 3)
# The largest change of a parameter in the first step, and the tolerance of the comparison. If padding rows had an
# influence, results would differ by more than 100 times the tolerance. Rounding causes far smaller differences in
# double precision. In single precision, a series of batch normalisations turns 1e-7 into 1e-3.
LONGEST_STEP, TOLERANCE = 0.05, 1e-5
# Messages of PyTorch's vmap, and their meaning. (The messages also ask to report the problem.)
_MEANINGS = {
    r"called random operation": "it draws random numbers that cannot be separated by client",
    r"\.item\(\)|data-dependent|boolean value": "its forward pass depends on the values of tensors",
    r"in-?place|doesn't match the broadcast shape": "it changes a tensor in place",
    r"Batching rule not implemented for ([\w:]+)": r"PyTorch cannot run \1 for several clients at once",
    r"escaped from inside": "its backward pass computes parts of the network again",
    r"dynamic shape": "the shapes of its tensors depend on their values",
}


class _Plain:
    """The hooks of plain training."""

    direction_is_elementwise = True
    changes_loss = changes_direction = False

    def __init__(self, task: Task) -> None:
        self._task = task

    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor:
        return self._task.loss(net(batch.x), batch.y)

    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
        return gradient


def obstacle(work: LocalWork, hooks: Hooks) -> str | None:
    """Why this network's clients cannot be trained in one batched call, as a clause; None: they can.

    Two clients of different sizes take two steps, one after another and in one batched call. If the batched call
    fails or gives other results, the network (or the loss, or the direction) does not allow it: it combines rows of a
    batch, some of which are padding, it depends on the values of tensors, or PyTorch has no rule for it. The test
    takes some hundredths of a second for a small network, and does not change the model.

    The test uses double precision and a copy of the network, because of rounding. A network that cannot be copied, or
    insists on float32, is tested in single precision.

    Args:
        hooks: of the method. If its loss or direction needs vectors given to `Federation.train`, or state made by
            `setup`, it cannot be tested yet; then only the network is tested.
    """
    for name, parameter in work.model.module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"the network has a hook on the gradient of {name}, which would see those of all clients"
    before = work.model.weights[0].clone()
    works = [work]
    with suppress(Exception):  # of any kind
        works.insert(0, _in_double(work))
    try:
        for tried, precise in product((hooks, _Plain(work.task)), works):
            start = precise.model.weights.clone()
            with _arithmetic(precise):
                drawn = _generators()
                try:
                    one_by_one = _both_clients(precise, tried, start)
                except Exception:  # any kind: what cannot be trained for one client cannot be compared
                    continue
                if _generators() != drawn:
                    return f"{_whose(tried)} draws from random or numpy.random, which clients in one call would share"
                return _difference(precise, tried, start, *one_by_one)
        return None
    finally:
        work.model.load(before)


def _generators() -> tuple[object, ...]:
    """The state of the generators that have no rule for batched calls."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (it is what others draw from)
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest


def _both_clients(work: LocalWork, hooks: Hooks, start: Tensor) -> tuple[float, list[tuple[Tensor, float]]]:
    """A learning rate, and the weights [P] and mean loss of each client after separate training.

    Args:
        start: [1, P], the received weights of both.
    """
    trainer = PlainTrainer(_small(work, 1.0))
    largest = trainer.gradients(_block(0), start, hooks, round=1).abs().max().item()
    lr = LONGEST_STEP / largest if largest else 1.0
    trainer = PlainTrainer(_small(work, lr))
    done = []
    for client in range(len(SIZES)):
        trained = trainer.train(_block(client), start, hooks, 1, 1)
        done.append((trained.weights[0].clone(), float(trained.loss[0])))
    return lr, done


def _whose(hooks: Hooks) -> str:
    return "the network or the method" if hooks.changes_loss or hooks.changes_direction else "the network"


def _difference(
    work: LocalWork, hooks: Hooks, start: Tensor, lr: float, one_by_one: list[tuple[Tensor, float]]
) -> str | None:
    whose = _whose(hooks)
    if not all(weights.isfinite().all() for weights, _ in one_by_one):
        return None
    try:
        trainer = SideBySideTrainer(_small(work, lr), len(SIZES))
        trained = trainer.train(_block(*range(len(SIZES))), start.expand(len(SIZES), -1), hooks, 1, 1)
    except Exception as error:
        return f"{whose} cannot run for several clients in one batched call: {_meaning(error)}"
    entries = work.model.layout.entries
    for k, (weights, loss) in enumerate(one_by_one):
        for entry in entries:
            expected, found = entry.view(weights), entry.view(trained.weights[k])
            apart = (found - expected).abs().max().item() if entry.size else 0.0
            if not apart <= TOLERANCE * max(1.0, expected.abs().max().item() if entry.size else 0.0):
                differs = f"{entry.name} differs by {apart:.1g}"
                return f"{whose} gives other results in a batched call than for one client ({differs})"
        if not abs(trained.loss[k] - loss) <= TOLERANCE * max(1.0, abs(loss)):
            differs = f"{trained.loss[k]:.6g}, not {loss:.6g}"
            return f"{whose} gives another loss in a batched call than for one client ({differs})"
    return None


def _small(work: LocalWork, lr: float) -> LocalWork:
    """Two clients with some of the first samples, and plain SGD."""
    ends = np.cumsum(SIZES)
    places = [np.arange(end - size, end) % len(work.samples.y) for end, size in zip(ends, SIZES, strict=True)]
    return replace(work, shards=places, settings=LocalTraining(epochs=1, batch_size=BATCH, lr=lr))


def _block(*clients: int) -> Block:
    sizes = np.array(SIZES)[list(clients)]
    return Block(np.array(clients), sizes, sizes)


def _in_double(work: LocalWork) -> LocalWork:
    """The same work with a copy of the network and samples in double precision."""
    model = work.model
    network = copy.deepcopy(model.frozen).double()
    for layer in network.modules():
        floating = {n: x for n, x in vars(layer).items() if isinstance(x, Tensor) and x.is_floating_point()}
        vars(layer).update({name: tensor.double() for name, tensor in floating.items()})
    trained = {entry.name for entry in model.layout.entries}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    with _default_type(torch.float64):
        return replace(work, model=FlatModel(network, model.device, model.layout.frozen), samples=work.samples.anew())


@contextmanager
def _arithmetic(work: LocalWork) -> Iterator[None]:
    """The context for the precision of the network, without TF32 convolutions on GPUs."""
    library = torch.backends.cudnn
    as_it_is = {name: getattr(library, name) for name in ("enabled", "benchmark", "deterministic")}
    with _default_type(work.model.weights.dtype), library.flags(**as_it_is, allow_tf32=False):
        yield


@contextmanager
def _default_type(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _meaning(error: Exception) -> str:
    text = " ".join(str(error).split())
    for pattern, meaning in _MEANINGS.items():
        if found := re.search(pattern, text):
            return found.expand(meaning)
    first = re.split(r"(?<=[a-z])[.;:] ", text)[0]
    return f"{type(error).__name__}: {first[:120]}"
