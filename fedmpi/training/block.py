"""Inputs and outputs of training: a block of clients, an algorithm's hooks, and the work that was done.

Imports no torch: the command line imports samplers, samplers import this module, and --help must be fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmpi.typing import Batch, Net, Tensor


class Hooks(Protocol):
    """The parts of a local step that an algorithm may change; see `fedmpi.algorithms.Algorithm`."""

    direction_is_elementwise: bool

    @property
    def changes_loss(self) -> bool: ...

    @property
    def changes_direction(self) -> bool: ...
    def loss(self, net: Net, batch: Batch, start: Tensor, client: Mapping[str, Tensor]) -> Tensor: ...
    def direction(self, gradient: Tensor, weights: Tensor, start: Tensor, block: Block) -> Tensor: ...


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
    """

    clients: NDArray[np.int64]
    samples: NDArray[np.int64]
    mass: NDArray[np.int64]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    completed: NDArray[np.float64] | None = None
    diverged: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[name]

    def give(self, vectors: Mapping[str, Tensor]) -> None:
        """Set vectors that the hooks may read: [K, ...], one row per client, or [n], the same for all."""
        self.vectors = {name: v.expand(len(self), -1) if v.dim() == 1 else v for name, v in vectors.items()}

    def row(self, k: int) -> dict[str, Tensor]:
        """The vectors of one client that the hooks may read."""
        return {name: rows[k] for name, rows in self.vectors.items()}

    def rows(self, which: slice | list[int]) -> Block:
        """Some of the clients, with their rows."""
        vectors = {name: rows[which] for name, rows in self.vectors.items()}
        completed = None if self.completed is None else self.completed[which]
        return Block(self.clients[which], self.samples[which], self.mass[which], vectors, completed, self.diverged)

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

    Attributes:
        name: name of its random streams. Phases with the same name see the same batches in the same order.
        epochs: passes over the client's samples; None: as the settings of local training say.
        columns: the columns of the model's vector [P] that are trained (whole tensors); None: all. The others keep
            their values, whatever the optimizer does. A batch normalisation layer that is not trained uses the
            received running statistics. `direction` is called for each contiguous run of columns.
    """

    name: str = ""
    epochs: int | None = None
    columns: tuple[slice, ...] | None = None


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
    """

    weights: Tensor
    loss: NDArray[np.float64]
    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]
