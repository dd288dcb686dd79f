"""The way from the clients to the server: what arrives there of the vectors that clients send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.adversary import Adversary
from fedmpi.compression import Compression, Dense

if TYPE_CHECKING:
    from fedmpi.training.block import Block

#: Vectors [K, n] of a block's clients, and the group [K] of each.
Arrived = tuple[Tensor, "Block", NDArray[np.int64]]


class Channel:
    """One kind of vector that each client of a round sends.

    Args:
        adversary: what malicious clients do to theirs, before it is compressed; None: all are honest.
        compression: how all compress theirs.
        parameters: the first elements of a vector, of which the change is sent; the others are sent as they are.
        start: [n] or [groups, n], from which a vector of the group differs by the change; None: vectors are changes.
        cohort: [m] the clients of the round.
        round: its number.
        number: of the kind of vector.

    Attributes:
        bytes: what this rank's clients have sent.
    """

    def __init__(
        self,
        adversary: Adversary | None,
        compression: Compression,
        parameters: int,
        start: Tensor | None,
        cohort: NDArray[np.int64],
        round: int,
        number: int,
    ) -> None:
        self._adversary = adversary
        self._compression = compression
        self._parameters = parameters
        self._start = start
        self._cohort = cohort
        self._round = round
        self._number = number
        self._held: list[Arrived] = []
        self.bytes = 0

    def send(self, vectors: Tensor, block: Block, group: NDArray[np.int64]) -> Arrived:
        """What arrives of `vectors` [K, n], of whom; of its group is the start from which each differs.

        Malicious clients that collude send later, when all have been trained.
        """
        count, size = vectors.shape
        self.bytes += count * (self._compression.bytes(self._parameters) + 4 * (size - self._parameters))
        liars = self._adversary.among(block).tolist() if self._adversary else []
        if self._adversary and liars:
            if self._adversary.colludes:
                honest = [k for k in range(count) if k not in liars]
                self._held.append((vectors[liars], block.rows(liars), group[liars]))
                vectors, block, group = vectors[honest], block.rows(honest), group[honest]
            else:
                start = self._starts(vectors, group)[liars]
                change = vectors[liars, : self._parameters] - start
                change = self._adversary.change(change, block.clients[liars], self._round, self._number)
                vectors = vectors.clone()
                vectors[liars, : self._parameters] = start + change
        return self._compressed(vectors, group), block, group

    def late(self) -> Iterator[Arrived]:
        """What arrives of those that collude; a collective if there are such in the experiment."""
        if not (self._adversary and self._adversary.colludes):
            return
        changes = {
            client: row.cpu().numpy()
            for vectors, block, group in self._held
            for client, row in zip(
                block.clients.tolist(),
                vectors[:, : self._parameters] - self._starts(vectors, group),
                strict=True,
            )
        }
        agreed = self._adversary.agree(changes, self._parameters, self._cohort)
        for vectors, block, group in self._held:
            vectors[:, : self._parameters] = self._starts(vectors, group) + agreed.to(vectors.device)
            yield self._compressed(vectors, group), block, group

    def _compressed(self, vectors: Tensor, group: NDArray[np.int64]) -> Tensor:
        if isinstance(self._compression, Dense):
            return vectors
        received = vectors.clone()
        start = self._starts(vectors, group)
        change = received[:, : self._parameters] - start
        received[:, : self._parameters] = start + self._compression.compress(change)
        return received

    def _starts(self, vectors: Tensor, group: NDArray[np.int64]) -> Tensor:
        """[K, d], from which each of the vectors [K, n] differs by its change."""
        start = vectors.new_zeros(vectors.shape[1]) if self._start is None else self._start
        return (start.expand(len(vectors), -1) if start.dim() == 1 else start[group])[:, : self._parameters]
