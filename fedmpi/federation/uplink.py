"""The way from clients to the server: attacks, clipping and compression of the sent vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi import randomness
from fedmpi.errors import BadInput, named
from fedmpi.federation.adversary import Adversary
from fedmpi.federation.client_state import ClientState
from fedmpi.mpi.world import World
from fedmpi.options import acts_as
from fedmpi.policies.compression import Compression, Dense
from fedmpi.policies.privacy import NoPrivacy, Privacy, clipped
from fedmpi.training.block import Block

NONE = NoPrivacy()

#: Vectors [K, n] of a block's clients, and the group [K] of each.
Arrived = tuple[Tensor, "Block", NDArray[np.int64]]


@dataclass(eq=False)
class Uplink:
    """One kind of vector that each client of a round sends.

    Attributes:
        adversary: changes the vectors of malicious clients before compression; None: all are honest.
        compression: of all clients.
        parameters: number of first elements of a vector whose change is sent; the others are sent unchanged.
        start: [n] or [groups, n], the received vector, from which changes are computed; None: vectors are changes.
        kept: state of clients for the compression of this vector; None: there is none.
        cohort: [m] the clients of the round.
        seed: of the experiment.
        round: number of the round.
        number: number of the kind of vector, the same in every round.
        privacy: clips changes, and adds noise to the mean.
        divisor: number of clients by which the sum is divided, for the noise.
        bytes: number of bytes that this rank's clients have sent.
    """

    adversary: Adversary | None
    compression: Compression
    parameters: int
    start: Tensor | None
    kept: ClientState | None
    cohort: NDArray[np.int64]
    seed: int
    round: int
    number: int
    privacy: Privacy = NONE
    divisor: int = 1
    bytes: int = field(default=0, init=False)
    _held: list[Arrived] = field(default_factory=list, init=False)
    _senders: set[int] = field(default_factory=set, init=False)
    _again: set[int] = field(default_factory=set, init=False)

    def send(self, vectors: Tensor, block: Block, group: NDArray[np.int64]) -> Arrived:
        """The vectors that arrive at the server, from `vectors` [K, n] that clients send, and their clients.

        Malicious clients that collude send later, after all have been trained.
        """
        count, size = vectors.shape
        self.bytes += count * self.compression.payload(size, self.parameters)
        senders = {*block.clients[block.mass > 0].tolist()}
        self._again |= self._senders & senders
        self._senders |= senders
        liars = self.adversary.among(block).tolist() if self.adversary else []
        if self.adversary and liars:
            if self.adversary.colludes:
                honest = [k for k in range(count) if k not in liars]
                self._held.append((vectors[liars], block.rows(liars), group[liars]))
                vectors, block, group = vectors[honest], block.rows(honest), group[honest]
            else:
                start = self._starts(vectors, group)[liars]
                change = vectors[liars, : self.parameters] - start
                change = self.adversary.change(change, block.clients[liars], self.round, self.number)
                vectors = vectors.clone()
                vectors[liars, : self.parameters] = start + change
        return self._compressed(self._clipped(vectors, group), block, group)

    def check(self, world: World) -> None:
        """Raise BadInput, on every rank alike, if a client has sent more under `--privacy` than clipping bounds."""
        if isinstance(self.privacy, NoPrivacy):
            return
        with world.agreed():
            for client in sorted(self._again)[:1]:
                reason = f"client {client} was added to a mean twice: must be one vector of each client per round"
                raise BadInput(f"= {named(self.privacy)}: {reason}", "--privacy")

    def noise(self) -> Tensor | None:
        """[parameters], the noise that is added to the mean; None: no noise."""
        drawn = self.privacy.noise(self.parameters, self.divisor, self.seed, self.round, self.number)
        return None if drawn is None else torch.from_numpy(drawn)

    def late(self) -> Iterator[Arrived]:
        """The vectors of colluding clients. A collective, if the experiment has such clients."""
        if not (self.adversary and self.adversary.colludes):
            return
        changes = {
            client: row.cpu().numpy()
            for vectors, block, group in self._held
            for client, row in zip(
                block.clients.tolist(),
                vectors[:, : self.parameters] - self._starts(vectors, group),
                strict=True,
            )
        }
        agreed = self.adversary.agree(changes, self.parameters, self.cohort)
        for vectors, block, group in self._held:
            vectors[:, : self.parameters] = self._starts(vectors, group) + agreed.to(vectors.device)
            yield self._compressed(self._clipped(vectors, group), block, group)

    def _clipped(self, vectors: Tensor, group: NDArray[np.int64]) -> Tensor:
        if self.privacy.clip == math.inf or not len(vectors):
            return vectors
        trained, start = vectors[:, : self.parameters], self._starts(vectors, group)
        change = trained - start
        allowed = clipped(change, self.privacy.clip)
        # Where the very change is allowed, the very number arrives, as below.
        allowed = torch.where(allowed == change, trained, start + allowed)
        return torch.cat((allowed, vectors[:, self.parameters :]), 1)

    def _compressed(self, vectors: Tensor, block: Block, group: NDArray[np.int64]) -> Arrived:
        if acts_as(self.compression, Dense) or not len(block):
            return vectors, block, group
        trained, others = vectors[:, : self.parameters], vectors[:, self.parameters :]
        start = self._starts(vectors, group)
        change = trained - start
        kept = change.new_empty(len(block), 0) if self.kept is None else self.kept[block]
        keys = randomness.keys(self.seed, f"compression {self.number}", self.round, block.clients)
        sent = self.compression.compress(change, kept, keys, self.round)
        if self.kept is not None:
            self.kept[block] = kept
        # Where the very change is sent, the very number arrives: start + (trained - start) is another one for a tenth
        # of the numbers. Elsewhere the sum is off by half a unit in the last place, as is every model in float32.
        arrived = torch.where(sent == change, trained, start + sent)
        return torch.cat((arrived, others), 1), block, group

    def _starts(self, vectors: Tensor, group: NDArray[np.int64]) -> Tensor:
        """[K, d], the starts from which the vectors [K, n] differ by their changes."""
        start = vectors.new_zeros(vectors.shape[1]) if self.start is None else self.start
        return (start.expand(len(vectors), -1) if start.dim() == 1 else start[group])[:, : self.parameters]
