"""The malicious clients of an experiment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World
from fedmpi.policies.attacks import Attack, Collusion, NoAttack
from fedmpi.randomness import key, seed_globals, stream
from fedmpi.training.block import Block

#: What changes are centred at.
NOTHING = np.zeros(1, dtype=np.float32)


class Adversary:
    """Knows which clients are malicious, and changes what they send.

    Args:
        world: the ranks.
        attack: the attack.
        clients: number of all clients.
        seed: of the experiment.

    Attributes:
        malicious: [clients] bool.
        colludes: whether malicious clients send their vectors only after all have trained.
    """

    def __init__(self, world: World, attack: Attack, clients: int, seed: int) -> None:
        self._world = world
        self._attack = attack
        self._seed = seed
        seed_globals(key(seed, "malicious"))
        self.malicious = attack.malicious(clients, seed)
        self.colludes = isinstance(attack, Collusion)
        self._lies = self.colludes or type(attack).change is not Attack.change

    @classmethod
    def of(cls, world: World, attack: Attack, clients: int, seed: int) -> Adversary | None:
        """The adversary; None: the settings have no malicious clients."""
        return None if isinstance(attack, NoAttack) else cls(world, attack, clients, seed)

    def poison(self, labels: NDArray[np.int64], shards: list[NDArray[np.int64]], classes: int) -> NDArray[np.int64]:
        """The training labels [n] as the clients with these shards see them."""
        poisoned = np.array(labels)
        for client in np.flatnonzero(self.malicious):
            seed_globals(key(self._seed, "poisoned labels", client=int(client)))
            poisoned[shards[client]] = self._attack.poison(poisoned[shards[client]], classes)
        return poisoned

    def among(self, block: Block) -> NDArray[np.int64]:
        """Positions in the block of clients that replace their update."""
        return np.flatnonzero(self.malicious[block.clients] & self._lies)

    def change(self, change: Tensor, clients: NDArray[np.int64], round: int, number: int) -> Tensor:
        """[K, d], what these malicious clients send instead of their changes [K, d].

        Args:
            number: of the vector, if a client sends several in a round.
        """
        purpose = f"attack {number}"
        return self._attack.change(
            change, [stream(self._seed, purpose, round, client) for client in clients.tolist()]
        )

    def agree(self, changes: Mapping[int, NDArray[np.float32]], size: int, cohort: NDArray[np.int64]) -> Tensor:
        """[size], what all malicious clients of a cohort send; zeros if none has a finite change. A collective.

        Args:
            changes: of the malicious clients that this rank has trained.
        """
        assert isinstance(self._attack, Collusion)
        attack = self._attack
        rows = Rows(self._world, cohort[self.malicious[cohort]], size)
        for client, change in changes.items():
            rows.put(client, change)
        rows.close()
        if not len(rows.present):
            return torch.zeros(size)
        attack.prepare(lambda rule: rows.pairwise(rule, lambda columns: NOTHING, size))
        agreed = rows.combine(lambda values: attack.agree(values, len(cohort)))
        mine = agreed if self._world.is_server else np.empty(size, dtype=np.float32)
        return torch.from_numpy(self._world.broadcast(mine))
