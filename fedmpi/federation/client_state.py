"""Vectors that clients keep between rounds. Each is on one rank at a time, and is allocated when first written."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.errors import BadInput
from fedmpi.mpi.world import World
from fedmpi.training.block import Block
from fedmpi.training.layout import aligned_rows

# 64 MiB, which the C library does not carve out of its heap, where rows that are made between other vectors leave as
# much unused as they use. Of such a piece only the pages that were written take memory.
PIECE_ELEMENTS = 1 << 24
ROWS_A_PIECE = 256
#: Names of the states that fedmpi itself creates begin like this. Those of methods may not.
INTERNAL = "fedmpi: "


class ClientState:
    """One named flat vector per client, such as SCAFFOLD's control variate.

    `state[block]` are the rows [K, n] of a block's clients; `initial`, if a client has not written yet. `state[block]
    = rows` stores new rows, except for clients whose training diverged. A row is in host memory of the rank that
    trained the client last. If another rank trains the client next, the row is sent there (`StateKeeper.gather`).

    Args:
        initial: [n] float32, the value before the first round.
        device: of the rows that are returned.

    Attributes:
        rows: [n] of each client whose row is on this rank.
        unused: [n] each, free memory for more rows.
        enters_losses: a loss reads rows only as vectors of its block, see `fedmpi.training.compiled.fingerprint`.
    """

    enters_losses = False

    def __init__(self, initial: Tensor, device: torch.device) -> None:
        self.initial = initial.cpu()
        self.rows: dict[int, Tensor] = {}
        self.unused: list[Tensor] = []
        self._device = device

    def __getitem__(self, block: Block) -> Tensor:
        rows = aligned_rows(len(block), len(self.initial), self._device)
        for row, client in zip(rows, block.clients.tolist(), strict=True):
            row.copy_(self.rows.get(client, self.initial))
        return rows

    def __setitem__(self, block: Block, rows: Tensor) -> None:
        block.check(rows)
        clients = block.clients.tolist()
        for k in block.undiverged():
            if clients[k] not in self.rows:
                self.rows[clients[k]] = self.empty_row()
            self.rows[clients[k]].copy_(rows[k].detach())

    def empty_row(self) -> Tensor:
        """An unused row [n]."""
        if not self.unused:
            size = len(self.initial)
            rows = min(max(PIECE_ELEMENTS // max(size, 1), 1), ROWS_A_PIECE)
            self.unused.extend(torch.empty(rows, size))
        return self.unused.pop()


class StateKeeper:
    """All client states of an algorithm, and the rank that holds each client's rows.

    Args:
        world: the ranks.
        clients: number of clients.

    Every rank knows which rank holds a client's rows, because every rank knows the placement of clients.
    """

    def __init__(self, world: World, clients: int) -> None:
        self._world = world
        self.states: dict[str, ClientState] = {}
        # The rank + 1; 0 before a client's first round. Zeros take no memory until they are written.
        self._holder = np.zeros(clients, dtype=np.int32)

    def create(self, name: str, initial: Tensor, device: torch.device) -> ClientState:
        """Give every client a vector.

        Raises:
            BadInput: there is one of this name already, which would be lost.
        """
        if name in self.states:
            raise BadInput(f"fed.client_state: clients have a state {name!r} already: choose another name")
        self.states[name] = ClientState(initial, device)
        return self.states[name]

    def home(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """[m] the ranks that hold the rows of these clients; -1 for a client before its first round."""
        return self._holder[clients].astype(np.int64) - 1

    @property
    def trained(self) -> NDArray[np.int64]:
        """The clients that have taken part so far, in rising order."""
        return np.flatnonzero(self._holder)

    def settle(self, clients: NDArray[np.int64], ranks: NDArray[np.int64]) -> None:
        """Note that these `ranks` [m] hold the rows of these clients [m]."""
        self._holder[clients] = ranks + 1

    @property
    def bytes(self) -> int:
        """Bytes that one client keeps."""
        return sum(state.initial.nbytes for state in self.states.values())

    def gather(self, clients: NDArray[np.int64], ranks: NDArray[np.int64]) -> int:
        """Bring the rows of `clients` [m] to the `ranks` [m] that train them next; a collective.

        Returns: The bytes that this rank sent and received.
        """
        before = self.home(clients)
        self.settle(clients, ranks)
        if not self.states:
            return 0
        me = self._world.rank
        moves = [
            (client, source, target)
            for client, source, target in zip(clients.tolist(), before.tolist(), ranks.tolist(), strict=True)
            if source not in (-1, target) and me in (source, target)
        ]
        for state in self.states.values():
            leaving = [(to, client) for client, source, to in moves if source == me]
            arriving = [(source, client, state.empty_row()) for client, source, to in moves if to == me]
            self._world.exchange(
                [(rank, state.rows.get(client, state.initial).numpy()) for rank, client in leaving],
                [(rank, row.numpy()) for rank, _, row in arriving],
            )
            state.unused += [state.rows.pop(client) for _, client in leaving if client in state.rows]
            state.rows.update((client, row) for _, client, row in arriving)
        return len(moves) * self.bytes
