"""The malicious clients of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpi.data import Split
from fedmpi.mpi.rows import Rows
from fedmpi.mpi.world import World
from fedmpi.policies.attacks import Attack, Collusion, NoAttack, Trigger
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
        self._poisons = type(attack).poison is not Attack.poison
        self._lies = self.colludes or attack.changes_updates

    @classmethod
    def of(cls, world: World, attack: Attack, clients: int, seed: int) -> Adversary | None:
        """The adversary; None: the settings have no malicious clients."""
        return None if isinstance(attack, NoAttack) else cls(world, attack, clients, seed)

    @property
    def trigger(self) -> Trigger | None:
        """What is put on the images that are poisoned; None: they stay as they are."""
        return self._attack.trigger

    def poison(
        self, labels: NDArray[np.int64], shards: Sequence[NDArray[np.int64]], classes: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The training labels [n] as the clients with these shards see them, and which samples [n] are poisoned."""
        poisoned, chosen = np.array(labels), np.zeros(len(labels), dtype=bool)
        if not self._poisons:
            return poisoned, chosen
        for client in np.flatnonzero(self.malicious).tolist():
            seed_globals(key(self._seed, "poisoned labels", client=client))
            shard = shards[client]
            some = shard[self._attack.choose(len(shard), stream(self._seed, "poisoned samples", client=client))]
            poisoned[some] = self._attack.poison(poisoned[some], classes)
            chosen[some] = True
        return poisoned, chosen

    def label_counts(self, split: Split, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """[clients, strata] numbers of training samples, of malicious clients by the labels [n] that they use."""
        counts = split.label_counts
        if self._poisons:
            counts = counts.copy()
            for client in np.flatnonzero(self.malicious).tolist():
                counts[client] = np.bincount(labels[split.train[client]], minlength=counts.shape[1])
        return counts

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
