"""Clients in groups that have some of the classes each: a partition for studies, used by its import path."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedmpi.data import Partition
from fedmpi.errors import require
from fedmpi.options import with_options
from fedmpi.ranges import Allowed

Integers = NDArray[np.int64]
Shares = Annotated[tuple[int, ...], Allowed(lambda shares: min(shares, default=0) >= 1, "one or more whole numbers")]


@with_options
class LabelGroups(Partition):
    """Every group of clients has samples of its own classes, and all clients have equally many.

    The classes are divided among the groups in their order. What a client cannot have without being larger than the
    clients of another group nobody has.

    Args:
        shares: how the clients are divided among the groups, in these proportions.
    """

    shares: Shares = (1, 1, 1, 1, 1)

    def groups(self, clients: int, rng: np.random.Generator) -> Integers:
        bounds = np.cumsum(self.shares) / sum(self.shares) * clients
        return np.searchsorted(bounds, np.arange(clients) + 0.5)

    def split(self, labels: Integers, clients: int, rng: np.random.Generator) -> list[Integers]:
        groups, known = self.groups(clients, rng), np.unique(labels)
        require(len(self.shares) <= len(known), "shares", self.shares, f"at most {len(known)}, one for each class")
        pools = [
            rng.permutation(np.flatnonzero(np.isin(labels, own))) for own in np.array_split(known, len(self.shares))
        ]
        members = [np.flatnonzero(groups == group) for group in range(len(self.shares))]
        each = min(len(pool) // max(len(some), 1) for pool, some in zip(pools, members, strict=True))
        require(each > 0, "--clients", clients, "at most as many as there are samples for")
        parts = {
            client: pool[place * each : (place + 1) * each]
            for pool, some in zip(pools, members, strict=True)
            for place, client in enumerate(some.tolist())
        }
        return [parts[client] for client in range(clients)]
