"""Inputs and outputs of training: a block of clients, an algorithm's hooks, and the work that was done.

Imports no torch: the command line imports samplers, samplers import this module, and --help must be fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmpi.training.settings import LocalOptimizer, LocalTraining, changed
from fedmpi.typing import Batch, Net, Tensor

#: What is said where weights are read too late.
OVERWRITTEN = "these weights were overwritten by a later train(); use or clone them before it"


class Hooks(Protocol):
    """The parts of a local step that an algorithm may change; see `fedmpi.algorithms.Algorithm`."""

    direction_is_elementwise: bool

    @property
    def changes_loss(self) -> bool: ...

    @property
    def changes_direction(self) -> bool: ...
    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor: ...
    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor: ...


def needs_whole(hooks: Hooks) -> bool:
    """Whether `direction` is called once per step, for all parameters: then it may do all that `Block` allows it."""
    return hooks.changes_direction and not hooks.direction_is_elementwise


@dataclass
class Block:
    """K clients that a rank trains together.

    Attributes:
        clients: [K] their numbers.
        samples: [K] numbers of training samples, in descending order if there are several clients.
        mass: [K] int64, weight of each client in a mean over the cohort.
        vectors: named rows [K, ...] that the hooks may read, given to `Federation.train`.
        completed: [K] float64, the share of the local training that each client completes; None: all of it.
        diverged: clients whose training has diverged in this round. Nothing of theirs is used or kept.
        further: computes `gradient`, within `direction`.
        expired: weights that were trained for these clients, in memory that has been overwritten since; None: none.
    """

    clients: NDArray[np.int64]
    samples: NDArray[np.int64]
    mass: NDArray[np.int64]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    completed: NDArray[np.float64] | None = None
    diverged: set[int] = field(default_factory=set)
    further: Callable[[Tensor, int], Tensor] | None = field(default=None, repr=False, compare=False)
    expired: Tensor | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[name]

    def give(self, vectors: Mapping[str, Tensor]) -> None:
        """Set vectors that the hooks may read: [K, ...], one row per client, or [n], the same for all.

        One number per client is [K, 1].
        """
        self.vectors = {name: v.expand(len(self), -1) if v.dim() == 1 else v for name, v in vectors.items()}

    def gradient(self, weights: Tensor, ahead: int = 0) -> Tensor:
        """[K, d]: the gradient at other weights; only within a `direction` that is not elementwise.

        The loss, the precision and the random numbers are those of the step that trains on this batch. Weights,
        running statistics and the reported loss stay as they are. Where nothing is trained, the gradient is zero.

        Args:
            weights: [K, d].
            ahead: 0: on the batch of this step; 1: on the client's next batch, and so on. After the last batch of a
                training come those that would follow.
        """
        if self.further is None:
            raise RuntimeError("Block.gradient works only in `direction`, with direction_is_elementwise = False")
        if ahead < 0:
            raise ValueError(f"ahead = {ahead}: must be at least 0")
        return self.further(weights, ahead)

    def check(self, vectors: Tensor) -> None:
        """Raise RuntimeError if vectors of these clients are in memory that now has other clients' weights."""
        if self.expired is not None:
            memory, overwritten = vectors.untyped_storage(), self.expired.untyped_storage()
            if memory.data_ptr() == overwritten.data_ptr():
                raise RuntimeError(OVERWRITTEN)

    def row(self, k: int) -> dict[str, Tensor]:
        """The vectors of one client that the hooks may read."""
        return {name: rows[k] for name, rows in self.vectors.items()}

    def rows(self, which: slice | list[int]) -> Block:
        """Some of the clients, with their rows."""
        vectors = {name: rows[which] for name, rows in self.vectors.items()}
        completed = None if self.completed is None else self.completed[which]
        return Block(self.clients[which], self.samples[which], self.mass[which], vectors, completed, self.diverged)

    def with_own_rows(self) -> Block:
        """The same clients, with copies of the rows, which may be changed."""
        return replace(self, vectors={name: rows.clone() for name, rows in self.vectors.items()})

    def undiverged(self) -> list[int]:
        """The positions of the clients whose training has not diverged."""
        return [k for k, client in enumerate(self.clients.tolist()) if client not in self.diverged]

    def columns(self, columns: slice, of: int) -> Block:
        """All clients, with a part of the rows of length `of`."""
        vectors = {name: rows[..., columns] if rows.shape[-1] == of else rows for name, rows in self.vectors.items()}
        return Block(self.clients, self.samples, self.mass, vectors, self.completed, self.diverged)


@dataclass(frozen=True)
class Phase:
    """One of several trainings of the same clients in the same round.

    What is None is as the settings of local training say.

    Attributes:
        name: name of its random streams. Phases with the same name and batch size see the same batches in the same
            order.
        epochs: passes over the client's samples.
        columns: the columns of the model's vector [P] that are trained (whole tensors); None: all. The others keep
            their values, whatever the optimizer does. A batch normalisation layer that is not trained uses the
            received running statistics. An elementwise `direction` is called for each contiguous run of columns. Any
            other is called once for all d parameters, with gradient 0 where nothing is trained; what it returns there
            is not used.
        steps: number of optimizer steps, used instead of epochs.
        batch_size: samples per batch; at least 2 for a network with batch normalisation.
        lr: learning rate, which follows the schedule of the settings.
        optimizer: sgd, with the momentum of the settings, adam or adamw. Its state starts afresh in every phase.
    """

    name: str = ""
    epochs: int | None = None
    columns: tuple[slice, ...] | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: LocalOptimizer | None = None

    def settings(self, local: LocalTraining) -> LocalTraining:
        """The settings of local training `local`, with what the phase changes."""
        return changed(local, self.epochs, self.steps, self.batch_size, self.lr, self.optimizer)


WHOLE = Phase()
#: One pass in which the gradient is computed, and no step is taken.
GRADIENT = Phase("gradient ", epochs=1)


@dataclass
class Work:
    """The trained models, and the work that was done.

    Attributes:
        weights: [K, P], in memory that the next training overwrites.
        loss: [K] mean over the samples seen; NaN for a client without samples.
        steps: [K] optimizer steps.
        seconds: [K]; clients that were trained together share the time in proportion to their steps.
        is_finite: whether all weights are known to be finite; if not, the training of some clients may have diverged.
        rows: the block's vectors, as a `direction` that is not elementwise has left them; else empty.
    """

    weights: Tensor
    loss: NDArray[np.float64]
    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    is_finite: bool
    rows: dict[str, Tensor] = field(default_factory=dict)

    def of(self, which: slice | NDArray[np.int64]) -> Work:
        """The work of some of the clients."""
        rows = {name: rows[which] for name, rows in self.rows.items()}
        return replace(
            self,
            weights=self.weights[which],
            loss=self.loss[which],
            steps=self.steps[which],
            seconds=self.seconds[which],
            rows=rows,
        )
