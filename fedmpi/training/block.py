"""What training takes and gives: a block of clients, an algorithm's hooks, and the account of the work.

Imports no torch: the command line imports samplers, samplers make blocks, and --help shall be fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmpi.typing import Batch, Net, Tensor


class Hooks(Protocol):
    """What an algorithm may change in a local step; see `fedmpi.algorithms.Algorithm`."""

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
        samples: [K] how many training samples each holds; in a block of several, most first.
        mass: [K] int64, what each counts in a mean over the cohort.
        vectors: named rows [K, ...] that the hooks may read, given to `Federation.train`.
        completed: [K] float64, the share of the local training that each gets done; None: all.
        diverged: those whose training has diverged in this round: nothing of theirs is used or kept.
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
        """Set what the hooks may read: vectors [K, ...], a row each, or [n], the same for all."""
        self.vectors = {name: v.expand(len(self), -1) if v.dim() == 1 else v for name, v in vectors.items()}

    def row(self, k: int) -> dict[str, Tensor]:
        """What the hooks may read of one client."""
        return {name: rows[k] for name, rows in self.vectors.items()}

    def rows(self, which: slice | list[int]) -> Block:
        """Some of the clients, with their rows."""
        vectors = {name: rows[which] for name, rows in self.vectors.items()}
        completed = None if self.completed is None else self.completed[which]
        return Block(self.clients[which], self.samples[which], self.mass[which], vectors, completed, self.diverged)

    def undiverged(self) -> list[int]:
        """The places of those whose training has not diverged."""
        return [k for k, client in enumerate(self.clients.tolist()) if client not in self.diverged]

    def columns(self, columns: slice, of: int) -> Block:
        """All of the clients, with a part of those rows that are `of` long."""
        vectors = {name: rows[..., columns] if rows.shape[-1] == of else rows for name, rows in self.vectors.items()}
        return Block(self.clients, self.samples, self.mass, vectors, self.completed, self.diverged)


@dataclass(frozen=True)
class Phase:
    """One of several trainings of the same clients in the same round.

    Attributes:
        name: of its random streams: phases of one name see the same batches in the same order.
        epochs: passes over the client's samples; None: as the settings of local training say.
        columns: the columns of the model's vector [P] that are trained, made of whole tensors; None: all. The others
            keep their values, whatever the optimizer; and a batch normalisation that is not trained uses the running
            statistics that it received. A direction is asked for one run of columns after the other.
    """

    name: str = ""
    epochs: int | None = None
    columns: tuple[slice, ...] | None = None


WHOLE = Phase()
#: One pass in which the gradient is computed, and no step is taken.
GRADIENT = Phase("gradient ", epochs=1)


@dataclass
class Work:
    """The models that training made, and what they cost.

    Attributes:
        weights: [K, P], in memory that the next training overwrites.
        loss: [K] mean over the samples seen; NaN for a client without any.
        steps: [K] optimizer steps.
        seconds: [K]; of clients that were trained together, equal shares by steps.
    """

    weights: Tensor
    loss: NDArray[np.float64]
    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]
