"""The way from the clients to the server: what arrives there of the vectors that clients send."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.attacks import Attack, NoAttack
from fedmpi.compression import Compression, Dense

if TYPE_CHECKING:
    from fedmpi.training.block import Block


class Channel:
    """One kind of vector that each client of a round sends.

    Args:
        attack: what malicious clients do to theirs.
        compression: how all compress theirs.
        parameters: the first elements of a vector, of which the change is sent; the others are sent as they are.
        start: [n] or [groups, n], from which a vector of the group differs by the change; None: vectors are changes.

    Attributes:
        bytes: what this rank's clients have sent.
    """

    def __init__(self, attack: Attack, compression: Compression, parameters: int, start: Tensor | None) -> None:
        self._attack = attack
        self._compression = compression
        self._parameters = parameters
        self._start = start
        self._alters = not (isinstance(attack, NoAttack) and isinstance(compression, Dense))
        self.bytes = 0

    def send(self, vectors: Tensor, block: Block, group: NDArray[np.int64]) -> Tensor:
        """[K, n], what arrives of `vectors` [K, n]; of its group is the start from which each differs."""
        count, size = vectors.shape
        self.bytes += count * (self._compression.bytes(self._parameters) + 4 * (size - self._parameters))
        if not self._alters:
            return vectors
        received = vectors.clone()
        start = received.new_zeros(size) if self._start is None else self._start
        start = (start if start.dim() == 1 else start[group])[..., : self._parameters]
        change = received[:, : self._parameters] - start
        received[:, : self._parameters] = start + self._compression.compress(self._attack.change(change))
        return received
