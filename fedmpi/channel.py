"""The way from the clients to the server: what arrives there of the vectors that clients send."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.attacks import Attack, NoAttack
from fedmpi.compression import Compression, Dense

if TYPE_CHECKING:
    from fedmpi.client_state import ClientState
    from fedmpi.training.block import Block


class Channel:
    """One kind of vector that each client of a round sends.

    Args:
        attack: what malicious clients do to theirs.
        compression: how all compress theirs.
        parameters: the first elements of a vector, of which the change is sent; the others are sent as they are.
        start: [n] or [groups, n], from which a vector of the group differs by the change; None: vectors are changes.
        kept: what clients keep for the compression of this vector; None: nothing.
        keys: clients [K] -> [K], of what is random in the compression.
        round: its number.

    Attributes:
        bytes: what this rank's clients have sent.
    """

    def __init__(
        self,
        attack: Attack,
        compression: Compression,
        parameters: int,
        start: Tensor | None,
        kept: ClientState | None,
        keys: Callable[[NDArray[np.int64]], NDArray[np.uint64]],
        round: int,
    ) -> None:
        self._attack = attack
        self._compression = compression
        self._parameters = parameters
        self._start = start
        self._kept = kept
        self._keys = keys
        self._round = round
        self._alters = not (isinstance(attack, NoAttack) and isinstance(compression, Dense))
        self.bytes = 0

    def send(self, vectors: Tensor, block: Block, group: NDArray[np.int64]) -> Tensor:
        """[K, n], what arrives of `vectors` [K, n]; of its group is the start from which each differs."""
        count, size = vectors.shape
        self.bytes += count * self._compression.payload(size, self._parameters)
        if not self._alters:
            return vectors
        trained, others = vectors[:, : self._parameters], vectors[:, self._parameters :]
        start = vectors.new_zeros(size) if self._start is None else self._start
        start = (start if start.dim() == 1 else start[group])[..., : self._parameters]
        change = trained - start
        sent = self._compress(self._attack.change(change), block)
        # Where the very change is sent, the very number arrives: start + (trained - start) is another one for a tenth
        # of the numbers. Elsewhere the sum is off by half a unit in the last place, as is every model in float32.
        arrived = torch.where(sent == change, trained, start + sent)
        return torch.cat((arrived, others), 1)

    def _compress(self, change: Tensor, block: Block) -> Tensor:
        kept = change.new_empty(len(block), 0) if self._kept is None else self._kept[block]
        sent = self._compression.compress(change, kept, self._keys(block.clients), self._round)
        if self._kept is not None:
            self._kept[block] = kept
        return sent
