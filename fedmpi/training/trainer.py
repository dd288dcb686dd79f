"""Local training: the work of clients between receiving a model and returning it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedmpi import randomness
from fedmpi.data.client_samples import dealt_anew, gathered
from fedmpi.tasks import Task
from fedmpi.training.block import GRADIENT, WHOLE, Block, Hooks, Phase, Work
from fedmpi.training.clientwise import Keyed
from fedmpi.training.flat import FlatModel, Net, Pass
from fedmpi.training.optimizers import SGD, Adam, AdamW, Optimizer
from fedmpi.training.samples import Batch, Samples, augmentation_draws, upload
from fedmpi.training.settings import LocalTraining
from fedmpi.training.symmetry import Group, find_groups

# How many samples pass through an extractor at once where their features are kept.
FEATURES_AT_ONCE = 64

#: client -> [H * W] the order in which it sees the pixels of its images, or None
PixelOrder = Callable[[int], Tensor | None]
#: (network, samples) -> features [B, ...]
Features = Callable[[Net, Batch], Tensor]


def by_the_extractor(net: Net, batch: Batch) -> Tensor:
    """The features of a `Backbone`."""
    return net.features(batch.x)


@dataclass(frozen=True)
class LocalWork:
    """Everything that a rank needs for training.

    Attributes:
        task: what is learned.
        model: the network.
        samples: the whole training set.
        shards: the samples of each client.
        pixels: the order in which a client sees the pixels of its images.
        settings: see `LocalTraining`.
        seed: of the experiment.
    """

    task: Task
    model: FlatModel
    samples: Samples
    shards: Sequence[NDArray[np.int64]]
    pixels: PixelOrder
    settings: LocalTraining
    seed: int


class Trainer(ABC):
    """Trains the clients of one rank.

    Args:
        work: what is trained.
        at_once: K, the largest number of clients per call of `train`.
    """

    def __init__(self, work: LocalWork, at_once: int = 1) -> None:
        self.at_once = at_once
        self.model = model = work.model
        self.settings = work.settings
        model.in_bf16 = work.settings.precision == "bf16"
        self.samples = work.samples
        self._pixels = work.pixels
        self._seed = work.seed
        self._optimizers: dict[str, Optimizer] = {}
        self._shards = gathered(work.shards)
        self.deal(self._shards)

    def deal(self, shards: Sequence[NDArray[np.int64]]) -> None:
        """Give these training samples to the first clients."""
        self._shards = dealt_anew(self._shards, shards)

    @abstractmethod
    def train(self, block: Block, start: Tensor, hooks: Hooks, round: int, rounds: int, phase: Phase = WHOLE) -> Work:
        """Train the block's clients.

        Args:
            start: [K, P], the received weights.
            hooks: the algorithm's loss and direction.
            round, rounds: for the learning rate's schedule and the random numbers.
            phase: the training of the round.
        """

    def gradients(self, block: Block, weights: Tensor, hooks: Hooks, round: int) -> Tensor:
        """[K, d]: the gradients of the clients' mean losses. No step is taken.

        Computed batch by batch over one pass, because the loss of a model with batch normalisation depends on
        batches. It has its own random streams, so later training is not affected.

        Args:
            weights: [K, P], at which the gradients are computed.
        """
        model, phase, net = self.model, GRADIENT, Net(self.model)
        result = torch.zeros(len(block), model.layout.parameters, device=model.device)
        keys = self._dropout_keys(phase, round, block.clients).tolist()
        for k, client in enumerate(block.clients.tolist()):
            shard = self._shards[client]
            model.select(self._prepare(phase, lone_sample=len(shard) == 1))
            model.load(weights[k])
            self.seed_others(keys[k])
            keyed, compute = Keyed(keys[k]), partial(losses_of, hooks, net, weights[k], block.row(k))
            steps = int(self.count_steps(np.array([client]), None, phase)[0])
            for step, batch in zip(range(steps), self._batches(client, round, phase), strict=False):
                model.backward_over(self._passes(batch, step, keyed, compute, phase))
                result[k].add_(model.gradient[0], alpha=batch.mass / (self.samples.mass(shard) or 1))
        return result

    @torch.no_grad()
    def features(self, block: Block, weights: Tensor, of: Features | None = None) -> Tensor:
        """[K, n, ...]: features of the clients' training samples, in evaluation mode, without augmentation.

        The features of a client are in the order of `Batch.place`. n is the largest number of samples; rows beyond a
        client's number are zero.

        Args:
            weights: [P] or [K, P], of the network.
            of: computes the features; None: those of the extractor.
        """
        net, shards = Net(self.model), [self._shards[client] for client in block.clients.tolist()]
        longest, models = max(map(len, shards)), weights.expand(len(block), -1)
        of = of or by_the_extractor
        rows = torch.zeros(len(block), longest, *self._shape_of(of), device=self.model.device)
        for row, client, shard, model in zip(rows, block.clients.tolist(), shards, models, strict=True):
            there = net.at(model)
            for first in range(0, len(shard), FEATURES_AT_ONCE):
                batch = self.samples.batch(shard[first : first + FEATURES_AT_ONCE], self._pixels(client))
                row[first : first + len(batch)] = of(there, batch)
        return rows

    def targets(self, block: Block, beyond: int) -> Tensor:
        """[K, n, ...]: targets of the clients' training samples, in the order of `Batch.place`; else `beyond`."""
        shards = upload(self.samples.y.device, *(self._shards[client] for client in block.clients.tolist()))
        targets = [self.samples.y[shard] for shard in shards]
        return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=beyond)

    @cached_property
    def feature_shape(self) -> torch.Size:
        """Shape of the features of one sample."""
        return self._shape_of(by_the_extractor)

    @torch.no_grad()
    def _shape_of(self, of: Features) -> torch.Size:
        net = Net(self.model).at(self.model.weights[0])
        return of(net, self.samples.batch(np.zeros(1, dtype=np.int64))).shape[1:]

    def unit_groups(self) -> list[Group]:
        """See `find_groups`; without groups whose units a frozen or constant tensor produces or reads."""
        groups = find_groups(self.model.module, self.samples.batch(np.zeros(2, dtype=np.int64)).x)
        names = {entry.name for entry in self.model.layout.entries}
        return [group for group in groups if all(axis.tensor in names for axis in group.axes)]

    def count_steps(
        self, clients: NDArray[np.int64], completed: NDArray[np.float64] | None = None, phase: Phase = WHOLE
    ) -> NDArray[np.int64]:
        """[K] optimizer steps of clients: at least one, if they have samples.

        Args:
            completed: [K] the share of the training that each client completes; None: all of it.
        """
        settings, merges = phase.settings(self.settings), self.model.normalises_batches
        steps = settings.count_steps(self._shards.sizes[clients], merges)
        if completed is not None:
            steps = np.maximum(np.rint(steps * completed).astype(np.int64), np.minimum(steps, 1))
        return steps

    def _prepare(self, phase: Phase, lone_sample: bool = False) -> tuple[slice, ...]:
        """Set the training mode; returns those of the columns [0, parameters) that are trained.

        Batch normalisation that is not trained uses its running statistics, and so does a client with one sample.
        """
        layout, module = self.model.layout, self.model.module
        if not module.training or self.model.normalises_batches:
            module.train()
        whole = (slice(0, layout.parameters),)
        columns = tuple(slice(part.start, min(part.stop, layout.parameters)) for part in phase.columns or whole)
        if self.model.normalises_batches and (lone_sample or columns != whole):
            places = {entry.name: entry for entry in layout.entries}
            for name, layer in module.named_modules():
                if isinstance(layer, _BatchNorm):
                    # Without a scale that is trained (affine=False, or a frozen one) its statistics stand for it.
                    own = places.get(f"{name}.weight") or places.get(f"{name}.running_mean")
                    if lone_sample or not (own and own.lies_in(phase.columns or (slice(0, layout.size),))):
                        layer.eval()
        return columns

    def _batches(self, client: int, round: int, phase: Phase) -> Iterator[Batch]:
        """The client's batches, pass after pass without end; it must have samples."""
        shard, clients = self._shards[client], np.array([client])
        pixels, augmentation = self._pixels(client), self.settings.augmentation
        cuts = phase.settings(self.settings).batches(len(shard), self.model.normalises_batches)
        for epoch in count():
            keys = self._hashed(f"{phase.name}order {epoch}", round, clients, len(shard))
            order = keys[0].argsort(kind="stable")
            arrays = [shard[order], order]
            if augmentation != "none":
                bits = self._hashed(f"{phase.name}augmentation {epoch}", round, clients, 3 * len(shard))
                arrays.append(augmentation_draws(bits.reshape(-1, 3)[order]))
            index, places, *draws = upload(self.model.device, *arrays)
            for cut in cuts:
                batch = self.samples.batch(index[cut], pixels, augmentation, draws[0][cut] if draws else None)
                batch.place = places[cut]
                yield batch

    def _passes(
        self, batch: Batch, step: int, keyed: Keyed, compute: Callable[[Batch], Tensor], phase: Phase
    ) -> Iterator[Pass]:
        """The forward passes of a step, each of which is computed when it is asked for.

        Args:
            batch: all samples of the step.
            compute: the losses [B] of a part of it.
        """
        settings = phase.settings(self.settings)
        count = settings.accumulate
        for number, part in enumerate(batch.split(settings.batch_size) if count > 1 else [batch]):
            with keyed.step(step * count + number):
                losses = compute(part)
            check_losses(losses, part.y)
            yield losses, part.shares(losses, of=batch)

    def seed_others(self, key: int) -> None:
        """Seed the global generators for other random functions of a network.

        (torch.manual_seed keeps stack traces if there is no GPU.)
        """
        torch.default_generator.manual_seed(key)
        if self.model.device.type == "cuda":
            torch.cuda.manual_seed(key)

    def _hashed(self, purpose: str, round: int, clients: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
        """[K, count] random bits. Those of a client do not depend on the others, nor on `count`."""
        return randomness.hashed_bits(randomness.keys(self._seed, purpose, round, clients), count)

    def _dropout_keys(self, phase: Phase, round: int, clients: NDArray[np.int64]) -> NDArray[np.int32]:
        """[K] keys for `ClientWise`."""
        return (randomness.keys(self._seed, f"{phase.name}dropout", round, clients) >> np.uint64(33)).astype(np.int32)

    def _fresh_optimizer(self, settings: LocalTraining) -> Optimizer:
        """The optimizer of these settings, without memory of earlier steps.

        It is made when it is first needed, and then kept, because its moments take as much memory as the weights of
        all clients that are trained at once.
        """
        kind, decay = settings.optimizer, settings.weight_decay
        if kind not in self._optimizers:
            shape, device = torch.Size((self.at_once, self.model.layout.parameters)), self.model.device
            self._optimizers[kind] = (
                SGD(shape, device, settings.momentum, decay)  # no phase changes its momentum
                if kind == "sgd"
                else {"adam": Adam, "adamw": AdamW}[kind](shape, device, decay)
            )
        self._optimizers[kind].reset()
        return self._optimizers[kind]

    def _clipped(self, parts: list[Tensor]) -> list[Tensor]:
        """The parts [K, n] of a step, clipped to the norm that the settings allow."""
        if self.settings.clip_norm is None:
            return parts
        norms = [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in parts]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.cat(norms, 1), dim=1, keepdim=True)
        scale = (self.settings.clip_norm / norm).clamp_(max=1)
        return [part * scale for part in parts]


def read(weights: Tensor, *numbers: Tensor) -> tuple[bool, NDArray[np.float64]]:
    """Whether the sum of all `weights` is finite, and the `numbers` [n] each, as [.., n].

    They come from the device in one copy, because the host waits for each. A sum takes a third of the time of a
    minimum and a maximum. If it is finite, so are all weights. (The sum of huge weights may not be.)
    """
    found = torch.cat([part.double().view(-1) for part in (weights.sum(), *numbers)]).cpu().numpy()
    return bool(np.isfinite(found[0])), found[1:].reshape(len(numbers), -1)


def losses_of(hooks: Hooks, net: Net, start: Tensor, rows: dict[str, Tensor], batch: Batch) -> Tensor:
    """[B] the losses of a batch; the same arguments in another order, of which the last one varies most."""
    return hooks.loss(net, batch, start, rows)


def check_losses(losses: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless there is one loss per sample."""
    if not isinstance(losses, Tensor) or losses.shape != targets.shape[:1]:
        raise ValueError(f"loss returned {_returned(losses)}, not a loss for each of {len(targets)} samples")


def direction_of(hooks: Hooks, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor:
    """The direction of a method; raises ValueError unless it is of the gradient's shape."""
    shape, step = gradient.shape, hooks.direction(gradient, weights, start, block)
    if not isinstance(step, Tensor) or step.shape != shape:
        raise ValueError(f"direction returned {_returned(step)}, not a tensor {list(shape)} like the gradient")
    return step


def _returned(value: object) -> str:
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return "nothing" if value is None else f"a {type(value).__name__}"
